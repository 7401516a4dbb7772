//! What `podshm run`, `ls` and `rm` ask.

use super::Loop;
use super::watch::creator_gone;
use crate::answer::now;
use crate::control::{LONGEST, Listed, Listing, Question, Response};
use crate::events::Reason;
use crate::segments::Segment;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

impl Loop {
    pub(super) fn accept_control(&mut self) {
        while let Ok((stream, _)) = self.control.accept() {
            // Root's alone, and short: it may wait a moment.
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
            let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
            if let Err(error) = self.converse(&stream) {
                tracing::warn!(%error, "a conversation over the control socket");
            }
        }
    }

    fn converse(&mut self, stream: &UnixStream) -> std::io::Result<()> {
        let mut line = String::new();
        BufReader::new(stream.take(LONGEST as u64)).read_line(&mut line)?;
        let response = match serde_json::from_str(&line) {
            Ok(question) => self.respond(question),
            Err(error) => Response::Refused(format!("expected a question of this release's podshm: {error}")),
        };
        let mut line = serde_json::to_vec(&response)?;
        line.push(b'\n');
        let mut stream = stream;
        stream.write_all(&line)
    }

    fn respond(&mut self, question: Question) -> Response {
        match question {
            Question::AddMember(member) => match self.add_member(&member) {
                Ok(()) => {
                    tracing::info!(
                        domain = self.config.name,
                        member,
                        "a member; System V calls that do not come through the library (static programs, raw calls) are an \
                         errno in it, of which this log and `podshm events` tell"
                    );
                    Response::Done
                }
                Err(error) => Response::Refused(error.to_string()),
            },
            Question::RemoveMember(member) => {
                self.remove_member(&member);
                Response::Done
            }
            Question::RunEnded => {
                self.end_runs();
                Response::Done
            }
            Question::Idle => Response::Idle(self.idle.idle().into_iter().chain(self.native.idle()).collect()),
            Question::List => Response::Listing(self.list()),
            Question::Remove(id, force) => self.remove(id, force),
            Question::NotStarted(member, why) => {
                tracing::warn!(domain = self.config.name, member, why, "a member was not started");
                self.memory.events.note(Reason::MemberNotStarted, &member, why);
                self.memory.events.write(&self.place);
                Response::Done
            }
            Question::PastLibrary(member, program, call) => {
                tracing::warn!(
                    domain = self.config.name,
                    member,
                    program,
                    call,
                    "a call that did not come through the library was refused with ENOSYS: the program is static, makes system calls \
                     by hand or was started without LD_PRELOAD; the domain would have to be in native mode"
                );
                let message = format!(
                    "{call} by {program} did not come through the preload library (static, raw system call, or without LD_PRELOAD): \
                     ENOSYS; run the domain in native mode"
                );
                self.memory.events.note(Reason::NativeCallRefused, &member, message);
                self.memory.events.write(&self.place);
                Response::Done
            }
        }
    }

    fn remove(&mut self, id: i32, force: bool) -> Response {
        let attached = self.memory.store.count(id, now());
        if self.memory.store.segments().find(id).is_err() {
            return Response::Refused(format!("no segment {id} here; `podshm ls` shows those that are"));
        }
        if attached > 0 && !force {
            return Response::Refused(format!(
                "segment {id} is attached {attached} times; end those programs, or remove it with --force: they keep what they have mapped"
            ));
        }
        self.memory.store.remove_by_force(id);
        Response::Done
    }

    fn list(&mut self) -> Listing {
        self.memory.store.sweep(now());
        let all: Vec<Segment> = self.memory.store.segments().all().cloned().collect();
        let listed = |segment: Segment| Listed {
            id: segment.id,
            key: segment.key,
            size: segment.size,
            uid: segment.owned.uid,
            mode: segment.owned.mode,
            attached: self.memory.store.count(segment.id, now()),
            creator: format!("{}:{}", segment.creator.member, segment.creator.pid),
            creator_gone: creator_gone(&segment),
            idle_seconds: self.idle_since.get(&segment.id).map(|since| since.elapsed().as_secs()),
        };
        let segments = all.into_iter().map(listed).collect();
        Listing {
            config: self.config.clone(),
            fill: self.place.fill().ok(),
            pages: self.memory.store.segments().pages(),
            segments,
            members: self.listeners.values().map(|listener| listener.member.clone()).collect(),
        }
    }
}
