//! The second decoder, in a process of its own that stays: see `second.py`.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

#[derive(Debug)]
struct Server {
    asks: ChildStdin,
    answers: ChildStdout,
    // Ends when it is asked nothing any more.
    _child: Child,
}

impl Server {
    fn start() -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new("python3");
        command.arg("-IS").arg(root.join("second.py")).arg(root.join("../tests/decoder"));
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = started else {
            println!("skipped where it needs python3: not found");
            return None;
        };
        Some(Self { asks: child.stdin.take()?, answers: child.stdout.take()?, _child: child })
    }

    fn ask(&mut self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        let len = u32::try_from(request.len()).unwrap_or(u32::MAX);
        self.asks.write_all(&[&len.to_le_bytes(), request].concat())?;
        self.asks.flush()?;
        let mut head = [0; 4];
        self.answers.read_exact(&mut head)?;
        let mut answer = vec![0; usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX)];
        self.answers.read_exact(&mut answer)?;
        Ok(answer)
    }
}

thread_local! {
    static SERVER: RefCell<Option<Server>> = RefCell::new(Server::start());
}

/// What the second decoder answers; `None` where there is no Python to run it.
pub fn ask(request: &[u8]) -> Option<String> {
    let answer = SERVER.with_borrow_mut(|server| server.as_mut().map(|server| server.ask(request)))?;
    let answer = answer.unwrap_or_else(|error| panic!("the second decoder is gone: {error}"));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(!answer.starts_with("Traceback"), "{answer}");
    Some(answer)
}
