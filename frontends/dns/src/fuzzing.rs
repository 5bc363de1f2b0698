//! What `integration/fuzz` runs: a plain function over bytes, so that a test can replay a corpus.

use hickory_proto::op::{Message, MessageType};

use crate::reply::{PLAIN_UDP, encode};
use crate::request::{ParsedMessage, read};

/// Reads `data` as a message to the server, and answers it.
///
/// Panics if the answer has another question or ID, is not an answer, or is longer than its client accepts.
pub fn dns_message(data: &[u8]) {
    let (answer, limit) = match read(data) {
        ParsedMessage::Question(request) => {
            let limit = request.udp_limit();
            assert!((512..=1232).contains(&limit), "{limit}");
            let answer = request.response();
            assert_eq!(answer.queries, [request.query]);
            (answer, limit)
        }
        ParsedMessage::Wrong(answer) => (answer, PLAIN_UDP.into()),
        ParsedMessage::Noise => return,
    };
    assert_eq!(answer.metadata.id.to_be_bytes(), data[..2]);
    let bytes = encode(&answer, limit);
    assert!(bytes.len() <= limit, "{} bytes for {limit}", bytes.len());
    let read = Message::from_vec(&bytes).expect("an answer of ours can be read");
    assert_eq!(read.metadata.message_type, MessageType::Response);
    assert_eq!(read.metadata.id, answer.metadata.id);
    // BADVERS and BADSIG have the same number.
    let number = |message: &Message| u16::from(message.metadata.response_code);
    assert_eq!(number(&read), number(&answer));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer() {
        let corpus =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/fuzz/corpus/dns_message");
        let mut files = 0;
        for file in std::fs::read_dir(&corpus).expect("the corpus is committed") {
            dns_message(&std::fs::read(file.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files >= 40, "{files} files in {}", corpus.display());
    }
}
