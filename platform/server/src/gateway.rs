//! The gateway.

pub(crate) mod verify;
