//! One connection to a server, on which something happens.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

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

/// Passes all connections on until `limit` bytes have come from the server over all of them; then `then` is called and no
/// connection lives on.
pub fn all_interrupted(port: u16, limit: u64, then: impl FnOnce() + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near_port = listener.local_addr().unwrap().port();
    let (passed, then) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Some(then))));
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (mut near, passed, then) = (near.unwrap(), Arc::clone(&passed), Arc::clone(&then));
            // Once the server is gone, so is what stands before it.
            let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)) else { return };
            let (mut up_in, mut up_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut up_in, &mut up_out));
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = far.read(&mut buffer) {
                    if passed.fetch_add(length as u64, Ordering::SeqCst) > limit {
                        if let Some(then) = then.lock().unwrap().take() {
                            then();
                        }
                        break;
                    }
                    if near.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
                let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
            });
        }
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
