//! A hub on this machine: HTTP/1.1, a thread for each connection, one request on each.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub(super) const REPO: &str = "team/encoder";
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) host: String,
    pub(super) token: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// The length that the header claims, where it is not the body's.
    pub(super) claims: Option<usize>,
}

impl Reply {
    pub(super) fn new(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { status, headers, body: body.to_vec(), claims: None }
    }
}

/// Stops when it is dropped.
pub(super) struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    log: Arc<Mutex<Vec<Request>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, log) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, requests, handler) = (stop.clone(), log.clone(), Arc::new(handler));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (handler, requests) = (handler.clone(), requests.clone());
                std::thread::spawn(move || serve(&stream.unwrap(), &*handler, &requests));
            }
        });
        Self { address, stop, log, accepting: Some(accepting) }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far, as `METHOD path`.
    pub(super) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().iter().map(|r| format!("{} {}", r.method, r.path)).collect()
    }

    pub(super) fn tokens(&self) -> Vec<Option<String>> {
        self.log.lock().unwrap().iter().map(|r| r.token.clone()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.accepting.take() {
            thread.join().unwrap();
        }
    }
}

fn serve(mut stream: &TcpStream, handler: &dyn Fn(&Request) -> Reply, log: &Mutex<Vec<Request>>) {
    let mut lines = BufReader::new(stream).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let mut parts = first.split(' ').map(str::to_owned);
    let (method, path) = (parts.next().unwrap(), parts.next().unwrap_or_default());
    let mut request = Request { method, path, host: String::new(), token: None };
    for line in lines {
        let Ok(line) = line else { return };
        if line.is_empty() {
            break;
        }
        match line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())) {
            Some((name, value)) if name == "authorization" => request.token = Some(value),
            Some((name, value)) if name == "host" => request.host = value,
            _ => {}
        }
    }
    log.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    let mut text = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    let length = ("Content-Length", reply.claims.unwrap_or(reply.body.len()).to_string());
    for (name, value) in reply.headers.iter().chain([&length]) {
        text = format!("{text}{name}: {value}\r\n");
    }
    text.push_str("\r\n");
    // The other side may hang up early.
    let _ = stream.write_all(text.as_bytes());
    if request.method != "HEAD" {
        let _ = stream.write_all(&reply.body);
    }
}

/// A repository with one commit, which is also `main`: files of tensors lie behind a redirect, others do not.
#[derive(Debug, Clone, Default)]
pub(super) struct Repo {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Where redirects lead to; the repository itself if there is none.
    pub(super) store: Option<String>,
}

impl Repo {
    pub(super) fn with(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(name.to_owned(), bytes.into());
        self
    }

    pub(super) fn reply(&self, request: &Request) -> Reply {
        if let Some(hash) = request.path.strip_prefix("/store/") {
            let file = self.files.values().find(|bytes| sha256(bytes) == hash);
            return file.map_or_else(
                || Reply::new(404, &[], b""),
                |bytes| Reply::new(200, &[("ETag", "\"of-the-store\"")], bytes),
            );
        }
        let Some(rest) = request.path.strip_prefix(&format!("/{REPO}/resolve/")) else {
            return Reply::new(404, &[("X-Error-Code", "RepoNotFound")], b"no such repository");
        };
        let (revision, file) = rest.split_once('/').unwrap();
        if revision != "main" && revision != COMMIT {
            return Reply::new(404, &[("X-Error-Code", "RevisionNotFound")], b"no such revision");
        }
        let commit = ("X-Repo-Commit", COMMIT);
        let Some(bytes) = self.files.get(file) else {
            return Reply::new(404, &[("X-Error-Code", "EntryNotFound"), commit], b"no such file");
        };
        if !file.ends_with(".safetensors") {
            return Reply::new(200, &[("ETag", &format!("\"{}\"", git(bytes))), commit], bytes);
        }
        let hash = sha256(bytes);
        let own = || format!("http://{}", request.host);
        let location = format!("{}/store/{hash}", self.store.clone().unwrap_or_else(own));
        let headers = [
            ("Location", location.as_str()),
            ("X-Linked-Etag", &format!("\"{hash}\"")),
            ("X-Linked-Size", &bytes.len().to_string()),
            ("ETag", "\"of-the-pointer\""),
            commit,
        ];
        Reply::new(302, &headers, b"see there")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// What git calls a file of these contents.
pub(super) fn git(bytes: &[u8]) -> String {
    hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}
