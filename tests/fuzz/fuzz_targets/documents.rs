#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        // A panic of a library is contained where the document is read; one that is not ends the target all the same.
        std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    },
    |data: &[u8]| nerve_fuzz::documents::run(data)
);
