//! A server that behaves as GitHub's API is documented to: what requests must look like (the file
//! `requests.json` beside this one has it from GitHub's OpenAPI description), which status is answered to
//! whom, pages with links, entity tags; and that fails when it is told to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

/// An App's token, which may write everything.
pub const APP: &str = "ghs_app";
/// A person's token, which may write comments and no check runs.
pub const PERSON: &str = "ghp_person";
/// A token that may only read.
pub const READER: &str = "ghs_reader";

/// Something that goes wrong with a request, once.
#[derive(Clone)]
pub enum Fault {
    /// Answered without being carried out, with this status, these headers and this message.
    Answer(u16, &'static [(&'static str, &'static str)], &'static str),
    /// The connection ends before the request is carried out.
    CutBefore,
    /// It is carried out, and the connection ends.
    CutAfter,
    /// It is carried out, and half of the answer comes.
    CutWithin,
    /// It is carried out, and the answer is that something went wrong.
    StumbleAfter,
}

/// What the server holds and has seen.
#[derive(Default)]
pub struct State {
    /// Check runs, the oldest first.
    pub runs: Vec<Value>,
    /// Their annotations.
    pub notes: BTreeMap<u64, Vec<Value>>,
    /// Comments of the pull request.
    pub comments: Vec<Value>,
    /// `METHOD PATH STATUS` of each request.
    pub log: Vec<String>,
    /// Faults for requests whose method and path these are the beginning and the end of.
    faults: Vec<(&'static str, &'static str, Fault)>,
    next_id: u64,
}

impl State {
    /// How many requests there were whose line begins so and contains this.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.log.iter().filter(|line| line.starts_with(method) && line.contains(part)).count()
    }

    /// The messages of a check run's annotations, sorted.
    pub fn messages(&self, run: &Value) -> Vec<String> {
        let notes = &self.notes[&run["id"].as_u64().unwrap()];
        let mut messages: Vec<_> =
            notes.iter().map(|note| note["message"].as_str().unwrap().to_owned()).collect();
        messages.sort();
        messages
    }

    /// A comment of somebody.
    pub fn comment(&mut self, login: &str, kind: &str, body: &str) {
        let id = self.id();
        self.comments.push(json!({
            "id": id, "body": body, "user": { "login": login, "type": kind },
            "html_url": format!("https://github.test/o/r/pull/7#issuecomment-{id}"),
        }));
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        1000 + self.next_id
    }
}

/// The server, until the test's process ends.
pub struct Server {
    /// Its address.
    pub url: String,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Value,
}

/// Status and body, and for a list how it is paged.
type Answer = (u16, Value);

impl Server {
    /// Listens below `/api/v3`, as an Enterprise Server does.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/api/v3", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let (base, shared) = (url.clone(), Arc::clone(&state));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (base, state) = (base.clone(), Arc::clone(&shared));
                std::thread::spawn(move || while serve(&stream, &base, &state).is_some() {});
            }
        });
        Self { url, state }
    }

    /// What it holds and has seen.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets the next request of this method whose path ends so fail; several are met one after another.
    pub fn fail(&self, method: &'static str, end: &'static str, fault: Fault) {
        self.state().faults.push((method, end, fault));
    }
}

/// Serves one request. Nothing where the connection is over.
fn serve(stream: &TcpStream, base: &str, state: &Mutex<State>) -> Option<()> {
    let request = read(stream)?;
    let mut state = state.lock().unwrap();
    let meant =
        |(method, end, _): &(&str, &str, Fault)| *method == request.method && request.path.ends_with(end);
    let at = state.faults.iter().position(meant);
    let fault = at.map(|at| state.faults.remove(at).2);
    let mut extra = String::new();
    let (status, body) = match &fault {
        Some(Fault::CutBefore) => {
            state.log.push(format!("{} {} cut", request.method, request.path));
            return None;
        }
        Some(Fault::Answer(status, headers, message)) => {
            headers.iter().for_each(|(name, value)| write!(extra, "{name}: {value}\r\n").unwrap());
            (*status, json!({ "message": message }))
        }
        _ => answer(&request, &mut state),
    };
    let (status, body) = match fault {
        Some(Fault::StumbleAfter) => (502, json!({ "message": "Server Error" })),
        _ => (status, body),
    };
    let mut text = body.to_string();
    if request.method == "GET" && status == 200 {
        if let Some(page) = page(&request, base, &body, &mut extra) {
            text = page;
        }
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let tag = format!("W/\"{:x}\"", hasher.finish());
        write!(extra, "etag: {tag}\r\n").unwrap();
        if request.headers.get("if-none-match") == Some(&tag) {
            state.log.push(format!("GET {} 304", request.path));
            return send(stream, &format!("HTTP/1.1 304 Not Modified\r\n{extra}\r\n"));
        }
    }
    state.log.push(format!("{} {} {status}", request.method, request.path));
    let head = format!(
        "HTTP/1.1 {status} Status\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: {}\r\n{extra}\r\n",
        text.len()
    );
    match fault {
        Some(Fault::CutAfter) => None,
        Some(Fault::CutWithin) => {
            send(stream, &format!("{head}{}", &text[..text.len() / 2]));
            None
        }
        _ => send(stream, &format!("{head}{text}")),
    }
}

fn send(mut stream: &TcpStream, text: &str) -> Option<()> {
    stream.write_all(text.as_bytes()).ok()
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    Some(Request {
        method,
        path: path.to_owned(),
        query: pairs.map(|(name, value)| (name.to_owned(), value.replace("%20", " "))).collect(),
        headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    })
}

/// Carries a request out.
fn answer(request: &Request, state: &mut State) -> Answer {
    let not_found = (404, json!({ "message": "Not Found" }));
    let denied = (403, json!({ "message": "Resource not accessible by integration" }));
    if !request.headers.contains_key("user-agent") || !request.headers.contains_key("x-github-api-version") {
        return (403, json!({ "message": "Request forbidden by administrative rules." }));
    }
    let token = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let token = token.unwrap_or_default();
    if ![APP, PERSON, READER].contains(&token) {
        return (401, json!({ "message": "Bad credentials" }));
    }
    let Some(path) = request.path.strip_prefix("/api/v3") else { return not_found };
    if path == "/user" {
        return if token == PERSON { (200, json!({ "login": "person", "type": "User" })) } else { denied };
    }
    let Some(path) = path.strip_prefix("/repos/o/r/") else { return not_found };
    let parts: Vec<&str> = path.split('/').collect();
    let is_check = parts[0] == "check-runs";
    if request.method != "GET" && token == READER {
        return denied;
    }
    if request.method != "GET" && is_check && token == PERSON {
        return (403, json!({ "message": "You must authenticate via a GitHub App." }));
    }
    let shape = match (request.method.as_str(), is_check) {
        ("POST", true) => Some("create"),
        ("PATCH", true) => Some("update"),
        ("POST" | "PATCH", false) => Some("comment"),
        _ => None,
    };
    let mut wrong = Vec::new();
    shape.iter().for_each(|shape| expect(&request.body, &json!(shape), shape, &mut wrong));
    if request.body["status"] == "completed" && request.body["conclusion"].is_null() {
        wrong.push("completed without a conclusion".into());
    }
    if !wrong.is_empty() {
        return (422, json!({ "message": "Invalid request.", "errors": wrong }));
    }
    let user = if token == PERSON {
        json!({ "login": "person", "type": "User" })
    } else {
        json!({ "login": "app[bot]", "type": "Bot" })
    };
    match (request.method.as_str(), &parts[..]) {
        ("POST", ["check-runs"]) => {
            let id = state.id();
            let mut run = request.body.clone();
            run["id"] = id.into();
            run["html_url"] = format!("https://github.test/o/r/runs/{id}").into();
            add_notes(state, id, &mut run);
            state.runs.push(run.clone());
            (201, run)
        }
        ("PATCH", ["check-runs", id]) => {
            let id = id.parse().unwrap();
            let mut body = request.body.clone();
            add_notes(state, id, &mut body);
            let Some(run) = state.runs.iter_mut().find(|run| run["id"] == id) else { return not_found };
            body.as_object().unwrap().iter().for_each(|(name, value)| run[name] = value.clone());
            (200, run.clone())
        }
        ("GET", ["commits", sha, "check-runs"]) => {
            let name = request.query.get("check_name");
            let meant =
                |run: &&Value| run["head_sha"] == *sha && name.is_none_or(|name| run["name"] == **name);
            let runs: Vec<Value> = state.runs.iter().filter(meant).cloned().collect();
            (200, json!({ "total_count": runs.len(), "check_runs": runs }))
        }
        ("GET", ["check-runs", id, "annotations"]) => {
            (200, state.notes.get(&id.parse().unwrap()).cloned().unwrap_or_default().into())
        }
        ("GET", ["issues", "7", "comments"]) => (200, state.comments.clone().into()),
        ("POST", ["issues", "7", "comments"]) => {
            let (login, kind) = (user["login"].as_str().unwrap(), user["type"].as_str().unwrap());
            state.comment(login, kind, request.body["body"].as_str().unwrap());
            (201, state.comments.last().unwrap().clone())
        }
        ("PATCH", ["issues", "comments", id]) => {
            let id: u64 = id.parse().unwrap();
            let Some(comment) = state.comments.iter_mut().find(|one| one["id"] == id) else {
                return not_found;
            };
            comment["body"] = request.body["body"].clone();
            (200, comment.clone())
        }
        _ => not_found,
    }
}

/// Adds the annotations of a request to those that are there.
fn add_notes(state: &mut State, id: u64, body: &mut Value) {
    let notes = body.get_mut("output").and_then(|output| output.as_object_mut()?.remove("annotations"));
    let notes = notes.and_then(|notes| notes.as_array().cloned()).unwrap_or_default();
    let there = state.notes.entry(id).or_default();
    there.extend(notes.into_iter().map(|mut note| {
        note["blob_href"] = "https://github.test/blob".into();
        note["raw_details"] = Value::Null;
        note
    }));
}

/// One page of a list, with a link to the next.
fn page(request: &Request, base: &str, body: &Value, extra: &mut String) -> Option<String> {
    // Fewer than were asked for, so that there are several.
    let size = request.query.get("per_page")?.parse::<usize>().ok()?.min(20);
    let number = request.query.get("page").map_or(1, |page| page.parse().unwrap());
    let key = if body.is_array() { None } else { Some("check_runs") };
    let items = key.map_or(body, |key| &body[key]).as_array()?;
    let (from, to) = ((number - 1) * size, (number * size).min(items.len()));
    let part = items.get(from..to).unwrap_or_default();
    if to < items.len() {
        let path = request.path.strip_prefix("/api/v3").unwrap();
        let others = request.query.iter().filter(|(name, _)| *name != "page");
        let query: Vec<String> =
            others.map(|(name, value)| format!("{name}={}", value.replace(' ', "%20"))).collect();
        write!(extra, "link: <{base}{path}?{}&page={}>; rel=\"next\"\r\n", query.join("&"), number + 1)
            .unwrap();
    }
    let mut page = body.clone();
    match key {
        Some(key) => page[key] = part.into(),
        None => page = part.into(),
    }
    Some(page.to_string())
}

/// Compares a value with the shape that the description gives it.
fn expect(value: &Value, shape: &Value, at: &str, wrong: &mut Vec<String>) {
    let all: Value = serde_json::from_str(include_str!("requests.json")).unwrap();
    let shape = shape.as_str().map_or(shape, |name| &all[name]);
    let is = match shape["type"].as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "integer" => value.is_u64(),
        _ => value.is_string(),
    };
    if !is {
        return wrong.push(format!("{at} is no {}", shape["type"]));
    }
    for name in shape["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            wrong.push(format!("{at} lacks {name}"));
        }
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        match shape["properties"].get(name) {
            Some(shape) => expect(value, shape, name, wrong),
            None => wrong.push(format!("{at} has no {name}")),
        }
    }
    if shape["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        wrong.push(format!("{at} is not one of the words for it"));
    }
    let length = value.as_str().map_or(0, |text| text.chars().count());
    if shape["maxLength"].as_u64().is_some_and(|most| length as u64 > most) {
        wrong.push(format!("{at} is too long"));
    }
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    if shape["maxItems"].as_u64().is_some_and(|most| items.len() as u64 > most) {
        wrong.push(format!("{at} has too many"));
    }
    items.iter().for_each(|item| expect(item, &shape["items"], at, wrong));
    let lines = [&value["start_line"], &value["end_line"]];
    if lines[0] != lines[1] && value.get("start_column").is_some() {
        wrong.push(format!("{at} has columns on several lines"));
    }
}
