//! Nerve from outside, as its users meet it: the binary, HTTP, NATS.
