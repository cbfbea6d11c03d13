//! Engines of model threads: created on their thread, and recreated after a panic.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// Delay before an engine is first recreated.
const MIN_RECREATE_DELAY: Duration = Duration::from_millis(10);
/// Maximum delay before an engine is recreated again.
const MAX_RECREATE_DELAY: Duration = Duration::from_secs(5);

/// Creates an engine `E` on the thread that runs it.
pub(crate) type EngineFactory<E> = dyn Fn() -> Result<E, String> + Send + Sync;

/// Creates an engine; converts a panic to an error.
pub(crate) fn create<E>(factory: &EngineFactory<E>) -> Result<E, String> {
    catch_unwind(AssertUnwindSafe(factory)).unwrap_or_else(|_| Err("creating the session panicked".to_owned()))
}

/// Recreates the engine of the model `name`, with backoff until it succeeds. Returns `None` once
/// `sleep_unless_closed`, which is called for each delay, reports that the model is closing.
pub(crate) fn recreate<E>(
    name: &str,
    factory: &EngineFactory<E>,
    sleep_unless_closed: impl Fn(Duration) -> bool,
) -> Option<E> {
    let mut delay = MIN_RECREATE_DELAY;
    loop {
        if sleep_unless_closed(delay) {
            return None;
        }
        match create(factory) {
            Ok(engine) => return Some(engine),
            Err(error) => tracing::error!(model = name, error, "cannot reload the model; retrying"),
        }
        delay = (delay * 2).min(MAX_RECREATE_DELAY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::cell::RefCell;

    #[test]
    fn engine_is_recreated_with_exponential_backoff() {
        let left = Mutex::new(vec![Ok(7), Err("no memory".to_owned())]);
        let waits = RefCell::new(Vec::new());
        let factory = move || left.lock().pop().unwrap_or_else(|| panic!("a panic is an error"));
        let sleep = |wait| {
            waits.borrow_mut().push(wait);
            waits.borrow().len() > 4
        };
        assert_eq!(recreate("m", &factory, sleep), Some(7));
        assert_eq!(*waits.borrow(), [MIN_RECREATE_DELAY, MIN_RECREATE_DELAY * 2]);
        assert_eq!(recreate("m", &factory, sleep), None, "it is closed after a panic and one more");
        assert_eq!(create(&factory), Err("creating the session panicked".to_owned()));
    }
}
