//! Runs the conformance suite, `tests/conformance/cases.txt`: each case in a domain of its own, each participant in a pod of its own.
//!
//! ```text
//!  test ── broker ── sockets of the pods
//!    └── a line over control.sock ──► agent, successor: a program in one language
//!         ◄── its answer ──────────── client, other:    a program in another
//! ```

use crate::pods::{InPod, Sockets};
use podshm_broker::{Broker, DomainConfig, Identity, Limits, Rights};
use podshm_proto::{Down, MAX_MESSAGE, RefusalKind, Refused, encode_down};
use podshm_region::descriptors;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, socket_with};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const CASES: &str = include_str!("../conformance/cases.txt");

/// One of the suite.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it shows.
    pub name: String,
    limits: Limits,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
struct Step {
    /// In the file.
    line: usize,
    who: String,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Ask {
        command: String,
        expected: String,
    },
    /// Again and again, until it is so.
    Until {
        command: String,
        expected: String,
    },
    Tell(String),
    Hear(String),
    /// Something that is done to a participant.
    Do(String),
}

/// All of them.
pub fn cases() -> Vec<Case> {
    parse(CASES).unwrap_or_else(|fault| panic!("tests/conformance/cases.txt: {fault}"))
}

fn parse(text: &str) -> Result<Vec<Case>, String> {
    let mut blocks: BTreeMap<String, Vec<Step>> = BTreeMap::new();
    let (mut cases, mut block): (Vec<Case>, Option<String>) = (Vec::new(), None);
    for (line, words) in (1..).zip(text.lines().map(str::trim)) {
        if words.is_empty() || words.starts_with('#') {
            continue;
        }
        if let Some(name) = words.strip_prefix("-- ") {
            blocks.insert(name.to_owned(), Vec::new());
            block = Some(name.to_owned());
            continue;
        }
        if let Some(title) = words.strip_prefix("== ") {
            let is_limit = |word: &&str| word.contains('=');
            let name: Vec<&str> = title.split(' ').filter(|word| !is_limit(word)).collect();
            let mut limits = Limits::default();
            for limit in title.split(' ').filter(is_limit) {
                set(&mut limits, limit).ok_or_else(|| format!("line {line}: no limit: {limit}"))?;
            }
            cases.push(Case { name: name.join(" "), limits, steps: Vec::new() });
            block = None;
            continue;
        }
        let steps = match words.strip_prefix("use ") {
            Some(name) => blocks.get(name).cloned().ok_or_else(|| format!("line {line}: no block {name:?}"))?,
            None => vec![step(line, words).ok_or_else(|| format!("line {line}: what is {words:?}?"))?],
        };
        match (&block, cases.last_mut()) {
            (Some(block), _) => blocks.entry(block.clone()).or_default().extend(steps),
            (None, Some(case)) => case.steps.extend(steps),
            (None, None) => return Err(format!("line {line}: a step before any case")),
        }
    }
    Ok(cases)
}

fn set(limits: &mut Limits, limit: &str) -> Option<()> {
    let (name, value) = limit.split_once('=')?;
    let place = match name {
        "budget" => &mut limits.budget,
        "share" => &mut limits.member_share,
        _ => return None,
    };
    *place = value.parse().ok()?;
    Some(())
}

fn step(line: usize, words: &str) -> Option<Step> {
    let end = words.find([':', '!', '?', '~'])?;
    let (who, rest) = (words[..end].to_owned(), all(words[end + 1..].trim())?);
    let what = match (&words[end..=end], rest.split_once("-> ")) {
        (":", None) if who == "test" => What::Do(rest.to_owned()),
        (":", Some((command, answer))) => What::Ask { command: command.trim().into(), expected: answer.into() },
        ("~", Some((command, answer))) => What::Until { command: command.trim().into(), expected: answer.into() },
        ("!", None) => What::Tell(rest.to_owned()),
        ("?", Some(("", answer))) => What::Hear(answer.into()),
        _ => return None,
    };
    Some(Step { line, who, what })
}

/// What is written with `s*2:queue:4096:64` in full: `s0:queue:4096:64 s1:queue:4096:64`.
fn all(words: &str) -> Option<String> {
    let mut full = Vec::new();
    for word in words.split(' ') {
        match word.split_once(':').map(|(name, rest)| (name.split_once('*'), rest)) {
            Some((Some((name, count)), rest)) => {
                full.extend((0..count.parse::<u32>().ok()?).map(|n| format!("{name}{n}:{rest}")));
            }
            _ => full.push(word.to_owned()),
        }
    }
    Some(full.join(" "))
}

/// Who takes part: a program for those who serve, one for those who join.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Agent and successor.
    pub agent: &'a Path,
    /// The clients.
    pub client: &'a Path,
}

/// Runs all of the suite with this pair; fails where a case does, once all have been run.
pub fn run(name: &str, pair: Pair<'_>) {
    let cases = cases();
    let mut failed = Vec::new();
    for case in &cases {
        let began = Instant::now();
        match Stage::run(name, pair, case) {
            Ok(true) => {}
            Ok(false) => nothing_ran(),
            Err(fault) => failed.push(format!("{}: {fault}", case.name)),
        }
        eprintln!("{name}: {} in {:?}", case.name, began.elapsed());
    }
    assert!(failed.is_empty(), "{name}: {} of {} cases fail:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// What is wrong in one case; nothing if it passes.
pub fn fault(name: &str, pair: Pair<'_>, case: &str) -> String {
    let case = cases().into_iter().find(|known| known.name == case).expect("a case");
    let play = std::panic::AssertUnwindSafe(|| Stage::run(name, pair, &case));
    match std::panic::catch_unwind(play) {
        Ok(Ok(true)) => String::new(),
        Ok(Ok(false)) => nothing_ran(),
        Ok(Err(fault)) => fault,
        Err(_) => "a participant died".into(),
    }
}

/// The tier says what it needs, and is counted as skipped where that is not there: whoever comes this far expects the suite to run.
fn nothing_ran() -> ! {
    panic!("pods have no walls here, so no case was run: run this as root, or where `unshare --user` works")
}

/// Where one case is played.
struct Stage<'a> {
    pair: Pair<'a>,
    /// Until it is ended.
    broker: Option<Broker>,
    sockets: Sockets,
    pods: BTreeMap<String, InPod>,
}

impl Stage<'_> {
    fn run(name: &str, pair: Pair<'_>, case: &Case) -> Result<bool, String> {
        let broker = Broker::start().expect("a broker");
        broker.add_domain(DomainConfig { limits: case.limits, ..crate::patient() }).expect("a domain");
        let mut stage = Stage { pair, broker: Some(broker), sockets: Sockets::new(name), pods: BTreeMap::new() };
        for step in &case.steps {
            let at = |fault: String| format!("line {}: {}: {fault}", step.line, step.who);
            if step.who != "test" && !stage.starts(&step.who) {
                return Ok(false);
            }
            match &step.what {
                What::Do(what) => stage.act(what).map_err(at)?,
                What::Tell(command) => stage.pod(&step.who).tell(command),
                What::Ask { command, expected } => {
                    let found = stage.pod(&step.who).ask(command);
                    if found != *expected {
                        return Err(at(format!("{command}: expected {expected:?}, found {found:?}")));
                    }
                }
                What::Until { command, expected } => {
                    let until = Instant::now() + crate::PATIENCE;
                    let mut found = stage.pod(&step.who).ask(command);
                    while found != *expected && Instant::now() < until {
                        std::thread::sleep(Duration::from_millis(1));
                        found = stage.pod(&step.who).ask(command);
                    }
                    if found != *expected {
                        return Err(at(format!("{command}: expected {expected:?} at last, found {found:?}")));
                    }
                }
                What::Hear(expected) => {
                    let found = stage.pod(&step.who).hear();
                    if found != *expected {
                        return Err(at(format!("expected {expected:?}, found {found:?}")));
                    }
                }
            }
        }
        stage.end()
    }

    /// Everybody ends well: a sanitizer, or valgrind, would have it otherwise.
    fn end(mut self) -> Result<bool, String> {
        while let Some((who, pod)) = self.pods.pop_last() {
            match pod.end() {
                Some(status) if status.success() => {}
                Some(status) => return Err(format!("{who} ends with {status}")),
                None => return Err(format!("{who} does not end")),
            }
        }
        Ok(true)
    }

    fn pod(&mut self, who: &str) -> &mut InPod {
        self.pods.get_mut(who).expect("it was started")
    }

    /// Starts a participant where it is not there yet; whether pods have walls here.
    fn starts(&mut self, who: &str) -> bool {
        if self.pods.contains_key(who) {
            return true;
        }
        let directory = self.sockets.of(who);
        if !directory.join("broker.sock").exists() {
            self.listen(who, &directory, Rights { join: !serves(who), serve: serves(who) });
        }
        let program = if serves(who) { self.pair.agent } else { self.pair.client };
        let number = ["agent", "successor", "client", "other"].iter().position(|known| *known == who);
        let uid = 20_001 + number.expect("a participant that there is") as u32;
        let Some(pod) = InPod::start(program.to_str().expect("a path"), who, uid, &directory) else { return false };
        self.pods.insert(who.to_owned(), pod);
        true
    }

    fn listen(&self, who: &str, directory: &Path, rights: Rights) {
        let (namespace, pod, uid) = ("test".into(), who.into(), who.into());
        let identity = Identity { namespace, pod, uid, service_account: "default".into() };
        let broker = self.broker.as_ref().expect("a broker that was not ended");
        broker.add_socket("d", directory, identity, rights).expect("a socket");
    }

    fn act(&mut self, what: &str) -> Result<(), String> {
        let (what, who) = what.split_once(' ').ok_or("nobody is named")?;
        let none = || format!("{who} is not there");
        let done = match what {
            "kill" => self.pods.remove(who).ok_or_else(none)?.pod.kill9(),
            "stop" => self.pods.get(who).ok_or_else(none)?.pod.stop(),
            "go-on" => self.pods.get(who).ok_or_else(none)?.pod.cont(),
            "misplace" => {
                self.listen(who, &self.sockets.of(who), Rights { join: serves(who), serve: !serves(who) });
                Ok(())
            }
            "end" if who == "broker" => {
                self.broker = None;
                Ok(())
            }
            "refuse-version" => {
                refuse_version(&self.sockets.of(who));
                Ok(())
            }
            _ => return Err(format!("nothing that can be done: {what}")),
        };
        done.map_err(|error| error.to_string())
    }
}

/// Whether this participant is an agent.
fn serves(who: &str) -> bool {
    matches!(who, "agent" | "successor")
}

/// Listens in a broker's place, as one of another release that speaks with nobody of this one.
fn refuse_version(directory: &Path) {
    let socket = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (path, socket) = (directory.join("broker.sock"), socket().expect("a socket"));
    bind(&socket, &SocketAddrUnix::new(&path).expect("a short path")).expect("a name for it");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).expect("a mode");
    listen(&socket, 4).expect("a listener");
    std::thread::spawn(move || {
        let Ok(peer) = accept(&socket) else { return };
        let mut buffer = vec![0; MAX_MESSAGE];
        let _ = descriptors::receive(&peer, &mut buffer);
        let message = "this broker speaks protocol 99 only; upgrade this program".to_owned();
        let refused = Refused { kind: RefusalKind::Version as i32, message };
        let _ = descriptors::send(&peer, &encode_down(Down::Refused(refused)), &[]);
        linger(peer);
    });
}

/// For the peer to read what was sent.
fn linger(peer: OwnedFd) {
    std::thread::sleep(Duration::from_millis(200));
    drop(peer);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_is_read_and_what_makes_no_sense_is_named() {
        let all = cases();
        assert!(all.len() > 25, "{}", all.len());
        assert!(all.iter().all(|case| !case.steps.is_empty()));
        let many = parse("== a\nagent: connect a:table:1:1 s*2:queue:1:1 -> ok").unwrap();
        let What::Ask { command, .. } = &many[0].steps[0].what else { panic!("{many:?}") };
        assert_eq!(command, "connect a:table:1:1 s0:queue:1:1 s1:queue:1:1");
        for (text, fault) in [
            ("client: join 1 -> ok", "before any case"),
            ("== a\nclient join", "what is"),
            ("== a\nclient: join", "what is"),
            ("== a\nuse nothing", "no block"),
            ("== a\nagent: connect a*b:queue:1:1 -> ok", "what is"),
            ("== a wishes=3\n", "no limit"),
        ] {
            let found = parse(text).unwrap_err();
            assert!(found.contains(fault), "{text:?}: {found}");
        }
    }
}
