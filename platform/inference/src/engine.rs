//! What a model's thread runs: made on that thread, and made again after a panic.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// The waits before an engine that panicked, or could not be made again, is made again: the first and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));

/// Makes an engine `E`, on the thread that runs it.
pub(crate) type MakeEngine<E> = dyn Fn() -> Result<E, String> + Send + Sync;

/// Makes an engine; a panic is an error.
pub(crate) fn make<E>(make: &MakeEngine<E>) -> Result<E, String> {
    catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| Err("making the session panicked".to_owned()))
}

/// Makes the engine of the model `name` again, however long that takes; none once `sleep_unless_closed`, which is given
/// each wait, says that the model is being closed.
pub(crate) fn remake<E>(
    name: &str,
    made_by: &MakeEngine<E>,
    sleep_unless_closed: impl Fn(Duration) -> bool,
) -> Option<E> {
    let (mut wait, longest) = WAITS;
    loop {
        if sleep_unless_closed(wait) {
            return None;
        }
        match make(made_by) {
            Ok(engine) => return Some(engine),
            Err(error) => tracing::error!(model = name, error, "the model cannot be loaded again yet"),
        }
        wait = (wait * 2).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, sync::Mutex};

    #[test]
    fn an_engine_is_made_again_after_longer_and_longer_waits() {
        let left = Mutex::new(vec![Ok(7), Err("no memory".to_owned())]);
        let waits = RefCell::new(Vec::new());
        let made_by = move || left.lock().unwrap().pop().unwrap_or_else(|| panic!("a panic is an error"));
        let sleep = |wait| {
            waits.borrow_mut().push(wait);
            waits.borrow().len() > 4
        };
        assert_eq!(remake("m", &made_by, sleep), Some(7));
        assert_eq!(*waits.borrow(), [WAITS.0, WAITS.0 * 2]);
        assert_eq!(remake("m", &made_by, sleep), None, "it is closed after a panic and one more");
        assert_eq!(make(&made_by), Err("making the session panicked".to_owned()));
    }
}
