//! Any request, posted to a source of any provider.

#![no_main]

#[path = "../request.rs"]
mod request;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(posted) = request::Posted::read(data) {
        posted.try_out();
    }
});
