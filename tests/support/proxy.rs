//! One connection to a server, on which something happens.
#![allow(dead_code, reason = "each test crate uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

/// Passes `limit` bytes on from the server at `port`, then calls `then`; goes on if that says so.
pub fn interrupted(port: u16, limit: u64, then: impl FnOnce() -> bool + Send + 'static) -> u16 {
    between(port, interrupt(limit, then))
}

/// The same on the second connection; the first one passes.
pub fn second_interrupted(port: u16, limit: u64, then: impl FnOnce() -> bool + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near_port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        one(&listener, port, |far, near| {
            let _ = std::io::copy(far, near); // it ends somehow
        });
        one(&listener, port, interrupt(limit, then));
    });
    near_port
}

fn interrupt(limit: u64, then: impl FnOnce() -> bool) -> impl FnOnce(&mut TcpStream, &mut TcpStream) {
    move |far, near| {
        std::io::copy(&mut far.take(limit), near).unwrap();
        if then() {
            let _ = std::io::copy(far, near); // it ends somehow
        }
    }
}

/// Changes one bit of what comes from the server.
pub fn damaging(port: u16, at: u64) -> u16 {
    between(port, move |far, near| {
        std::io::copy(&mut far.take(at), near).unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        near.write_all(&[byte[0] ^ 1]).unwrap();
        let _ = std::io::copy(far, near); // until somebody has enough
    })
}

fn between(port: u16, answers: impl FnOnce(&mut TcpStream, &mut TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near_port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || one(&listener, port, answers));
    near_port
}

fn one(listener: &TcpListener, port: u16, answers: impl FnOnce(&mut TcpStream, &mut TcpStream)) {
    let mut near = listener.accept().unwrap().0;
    let mut far = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (mut up_in, mut up_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut up_in, &mut up_out));
    answers(&mut far, &mut near);
    let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
}
