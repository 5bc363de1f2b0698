//! What `integration/fuzz` runs: a plain function over bytes, so that a test can replay a corpus.

use hickory_proto::rr::RecordType;
use kubevpn_target::Name;

use crate::dns::message::{ADDRESSES, LONGEST, RecordQuery};

/// Reads `data` as the answer to a query for the addresses of `web.corp.test`, ignoring its ID.
///
/// Panics if more is taken from it than the limits allow.
pub fn dns_answer(data: &[u8]) {
    let Ok(name) = Name::parse("web.corp.test.") else {
        return;
    };
    for record in [RecordType::A, RecordType::AAAA] {
        let Ok(question) = RecordQuery::new(&name, record) else {
            continue;
        };
        let mut answer = data.to_vec();
        if let Some(id) = answer.first_chunk_mut() {
            *id = question.id.to_be_bytes();
        }
        let Ok(Some(answered)) = question.read(&answer) else {
            continue;
        };
        assert!(answered.addresses.len() <= ADDRESSES);
        assert!(answered.ttl <= LONGEST);
        assert!(answered.alias.is_none() || answered.addresses.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer() {
        let corpus =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/fuzz/corpus/dns_answer");
        let mut files = 0;
        for file in std::fs::read_dir(&corpus).expect("the corpus is committed") {
            dns_answer(&std::fs::read(file.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files >= 10, "{files} files in {}", corpus.display());
    }
}
