//! The fuzz target's corpus, and mutations of it, through every provider: nothing panics, and nothing unsigned is taken in.

#[path = "../fuzz/request.rs"]
mod request;

use nerve_core::manifest::Provider;
use request::Posted;

/// Mutations of each file of the corpus.
const MUTATIONS: usize = 40;

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }
}

fn mutated(data: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    // The provider's name stays, so that the request still has a source.
    let head = data.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut data = data.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = head + numbers.below(data.len() - head);
        match numbers.below(4) {
            0 => data.truncate(at.max(head + 1)),
            1 => data.insert(at, b"=,;:{}[]\"\\\n \xff0"[numbers.below(14)]),
            2 => data[at] = u8::try_from(numbers.below(256)).unwrap(),
            _ => {
                let piece = data[at..(at + numbers.below(40)).min(data.len())].to_vec();
                data.splice(at..at, piece);
            }
        }
    }
    data
}

#[test]
fn no_request_of_the_corpus_or_near_it_is_taken_in_or_panics() {
    let corpus = nerve_tests::checkout().join("tests/fuzz/corpus/hooks");
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut files = 0;
    for file in std::fs::read_dir(&corpus).expect("the corpus") {
        let data = std::fs::read(file.unwrap().path()).unwrap();
        let posted = Posted::read(&data).expect("a request");
        Provider::BUILT_IN.iter().for_each(|provider| posted.to(provider));
        for _ in 0..MUTATIONS {
            if let Some(posted) = Posted::read(&mutated(&data, &mut numbers)) {
                posted.try_out();
            }
        }
        files += 1;
    }
    assert!(files >= Provider::BUILT_IN.len(), "each provider has a file");
}
