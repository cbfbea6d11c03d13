//! The frames on the pipes: a length and the bytes, preceded by a status in answers. Both ends limit the length.

use std::io::{self, Read, Write};

/// Size of a length field.
pub(crate) const LENGTH_BYTES: usize = 8;
/// Size of status and length of an answer.
pub(crate) const ANSWER_HEAD_BYTES: usize = LENGTH_BYTES + 1;

/// The content of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// The result.
    Done = 0,
    /// The reason why there is no result, for the sender of the input.
    Refused = 1,
}

impl Status {
    /// Parses the status byte.
    pub(crate) fn read(byte: u8) -> Option<Self> {
        [Self::Done, Self::Refused].into_iter().find(|status| *status as u8 == byte)
    }
}

/// Parses the head of an answer.
pub(crate) fn answer_head(head: [u8; ANSWER_HEAD_BYTES]) -> Option<(Status, u64)> {
    let (status, length) = head.split_first()?;
    Some((Status::read(*status)?, u64::from_le_bytes(length.try_into().ok()?)))
}

/// Reads the next request; `None` at the end of the pipe.
pub(crate) fn read_request(pipe: &mut impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; LENGTH_BYTES];
    match pipe.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u64::from_le_bytes(length);
    let size = usize::try_from(length).ok().filter(|_| length <= limit);
    let size = size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a request is longer than its limit"))?;
    let mut bytes = vec![0; size];
    pipe.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

/// Writes an answer.
pub(crate) fn write_answer(pipe: &mut impl Write, status: Status, bytes: &[u8]) -> io::Result<()> {
    let mut head = [status as u8; ANSWER_HEAD_BYTES];
    let length = u64::try_from(bytes.len()).map_err(io::Error::other)?;
    if let Some((_, rest)) = head.split_first_mut() {
        rest.copy_from_slice(&length.to_le_bytes());
    }
    pipe.write_all(&head)?;
    pipe.write_all(bytes)?;
    pipe.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_limited_and_complete() {
        let mut pipe = Vec::new();
        pipe.extend(3_u64.to_le_bytes());
        pipe.extend(b"abc");
        assert_eq!(read_request(&mut pipe.as_slice(), 3).unwrap().unwrap(), b"abc");
        assert!(read_request(&mut pipe.as_slice(), 2).is_err());
        pipe.pop();
        assert!(read_request(&mut pipe.as_slice(), 3).is_err());
        assert_eq!(read_request(&mut io::empty(), 3).unwrap(), None);
        let mut answer = Vec::new();
        write_answer(&mut answer, Status::Refused, b"no").unwrap();
        assert_eq!(answer_head(answer[..ANSWER_HEAD_BYTES].try_into().unwrap()), Some((Status::Refused, 2)));
        assert_eq!(answer_head([9; ANSWER_HEAD_BYTES]), None);
    }
}
