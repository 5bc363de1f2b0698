//! Replays the corpus of the fuzz targets through their bodies.

use std::{fs, path::Path};

use kubevpn_spdy::fuzzing::{fuzz_frames, fuzz_session};

fn replay(target: &str, body: fn(&[u8])) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/fuzz");
    let wrapper = fuzz.join("fuzz_targets").join(target).with_extension("rs");
    assert!(wrapper.is_file(), "{} is gone", wrapper.display());
    let corpus = fs::read_dir(fuzz.join("corpus").join(target)).unwrap();
    let files: Vec<_> = corpus.map(|file| file.unwrap().path()).collect();
    assert!(files.len() > 10, "only {} files for {target}", files.len());
    for file in files {
        let data = fs::read(&file).unwrap();
        let result = std::panic::catch_unwind(|| body(&data));
        assert!(result.is_ok(), "{}", file.display());
    }
}

#[test]
fn the_corpus_of_frames() {
    replay("spdy_frames", fuzz_frames);
}

#[test]
fn the_corpus_of_sessions() {
    replay("spdy_session", fuzz_session);
}
