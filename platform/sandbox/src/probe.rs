//! Work that tries forbidden operations and fatal conditions, for tests and operators.

use crate::helper::{Job, Work};
use std::{
    fs,
    hint::black_box,
    io,
    net::{TcpListener, UdpSocket},
    os::unix::net::UnixStream,
    process::Command,
};

/// Tries the request: `echo TEXT`, `read FILE`, `write FILE`, `socket`, `run PROGRAM`, `pid`, or `nest`, `allocate`,
/// `spin`, `panic`, which end the process or the request.
pub const PROBE: Work = Work { name: "probe", start: |_| Ok(Box::new(probe) as Job), load: None };

fn probe(request: &[u8]) -> Result<Vec<u8>, String> {
    let request = String::from_utf8_lossy(request).into_owned();
    let (word, rest) = request.split_once(' ').unwrap_or((&request, ""));
    let tried = match word {
        "echo" => return Ok(rest.as_bytes().to_vec()),
        "pid" => return Ok(std::process::id().to_string().into_bytes()),
        "read" => fs::read(rest).map(drop),
        "write" => fs::write(rest, "x"),
        "run" => Command::new(rest).spawn().map(drop),
        "socket" => sockets(),
        "nest" => return Ok(nest(0).to_string().into_bytes()),
        "allocate" => return Ok(allocate().to_string().into_bytes()),
        "spin" => spin(),
        "panic" => Err(io::Error::other(panicked())),
        _ => Err(io::Error::other("the probe does not know this word")),
    };
    match tried {
        Ok(()) => Ok(b"possible".to_vec()),
        Err(error) => Err(error.to_string()),
    }
}

/// Succeeds if any kind of socket can be created.
fn sockets() -> io::Result<()> {
    let tcp = TcpListener::bind("127.0.0.1:0").map(drop);
    tcp.or_else(|_| UdpSocket::bind("127.0.0.1:0").map(drop)).or_else(|_| UnixStream::pair().map(drop))
}

/// Recurses until the stack overflows.
fn nest(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    let below = if depth == u64::MAX { 0 } else { nest(depth + 1) };
    below.wrapping_add(frame.iter().sum::<u64>())
}

/// Allocates memory until none is left.
fn allocate() -> usize {
    let mut held = Vec::new();
    loop {
        held.push(black_box(vec![1_u8; 1 << 20]));
    }
}

/// Computes forever.
fn spin() -> io::Result<()> {
    loop {
        black_box(0);
    }
}

fn panicked() -> String {
    let empty: &[u8] = black_box(&[]);
    let index = black_box(1);
    #[expect(clippy::indexing_slicing, reason = "this is how libraries panic")]
    empty[index].to_string()
}
