//! The bus, the registry, the worker and the gateway: everything that speaks NATS or HTTP, nothing that runs a guest.

pub mod bus;
pub mod config;
pub mod gateway;
pub mod registry;
mod worker;
