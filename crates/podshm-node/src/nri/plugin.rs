//! The plugin: a thread that is connected to the runtime, or tries to be.

use super::Native;
use super::messages::{
    ConfigureRequest, ConfigureResponse, CreateContainerRequest, CreateContainerResponse, RegisterPlugin, Request,
    Response, Status, SynchronizeRequest, SynchronizeResponse,
};
use super::wire::{Frame, PLUGIN, REQUEST, RESPONSE, RUNTIME, Reader};
use prost::Message;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// As the runtime's log calls us: `10-podshm`.
const NAME: &str = "podshm";
const INDEX: &str = "10";
/// Of all events, CreateContainer.
const EVENTS: i32 = 1 << 3;
/// Between two tries to connect.
const PAUSE: Duration = Duration::from_millis(500);
/// gRPC's code for a method that is not there.
const UNIMPLEMENTED: i32 = 12;

#[derive(Debug, Default)]
struct Stop {
    said: bool,
    /// The connection that is to be shut down then.
    connection: Option<UnixStream>,
}

/// Runs until it is dropped; then the runtime asks us no more.
#[derive(Debug)]
pub struct Plugin {
    stop: Arc<(Mutex<Stop>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Plugin {
    /// At the runtime's socket, which need not be there yet.
    pub fn start(native: Arc<Native>, socket: PathBuf) -> io::Result<Self> {
        native.is_not_asked(format!("the container runtime has not answered at {} yet", socket.display()));
        let stop = Arc::new((Mutex::new(Stop::default()), Condvar::new()));
        let until = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("podshm-nri".into()).spawn(move || run(&native, &socket, &until))?;
        Ok(Plugin { stop, thread: Some(thread) })
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let (stop, told) = &*self.stop;
        {
            let mut stop = stop.lock().unwrap_or_else(PoisonError::into_inner);
            stop.said = true;
            if let Some(connection) = &stop.connection {
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
        told.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(native: &Native, socket: &Path, until: &(Mutex<Stop>, Condvar)) {
    let (stop, told) = until;
    loop {
        let ended = UnixStream::connect(socket).and_then(|connection| {
            {
                let mut stop = stop.lock().unwrap_or_else(PoisonError::into_inner);
                if stop.said {
                    return Ok(());
                }
                stop.connection = Some(connection.try_clone()?);
            }
            converse(native, connection)
        });
        let why = match ended {
            Ok(()) => format!("the container runtime has ended the connection at {}", socket.display()),
            Err(error) => format!("the container runtime does not answer at {}: {error}", socket.display()),
        };
        let was_asked = native.is_connected();
        native.is_not_asked(format!("{why} (is NRI on in its configuration?)"));
        if was_asked {
            tracing::warn!(why, "the container runtime does not ask podshmd; pods of domains in native mode wait");
        }
        let stop = stop.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut stop, _) =
            told.wait_timeout_while(stop, PAUSE, |stop| !stop.said).unwrap_or_else(PoisonError::into_inner);
        stop.connection = None;
        if stop.said {
            return native.is_not_asked("this podshmd is about to end".to_owned());
        }
    }
}

/// Registers, and answers until the runtime hangs up.
fn converse(native: &Native, mut connection: UnixStream) -> io::Result<()> {
    let mut reader = Reader::new(connection.try_clone()?);
    let us = RegisterPlugin { plugin_name: NAME.into(), plugin_idx: INDEX.into() };
    let register = Request {
        service: "nri.pkg.api.v1alpha1.Runtime".into(),
        method: "RegisterPlugin".into(),
        payload: us.encode_to_vec(),
    };
    Frame::of(RUNTIME, 1, REQUEST, &register).write(&mut connection)?;
    let mut there = SynchronizeRequest::default();
    while let Some(frame) = reader.read()? {
        match (frame.connection, frame.kind) {
            (RUNTIME, RESPONSE) => {
                let status = Response::decode(&frame.bytes[..])?.status.unwrap_or_default();
                if status.code != 0 {
                    return Err(io::Error::other(format!("the plugin was not registered: {}", status.message)));
                }
            }
            (PLUGIN, REQUEST) => {
                let request = Request::decode(&frame.bytes[..])?;
                let response = answer(native, &request, &mut there)?;
                Frame::of(PLUGIN, frame.stream, RESPONSE, &response).write(&mut connection)?;
                if request.method == "Synchronize" && there == SynchronizeRequest::default() {
                    // The runtime makes no container before it has this answer.
                    native.is_asked();
                }
            }
            // Streams, which nobody here opens.
            _ => {}
        }
    }
    Ok(())
}

/// Answers a call. `there` is what has been told so far of what runs already.
fn answer(native: &Native, request: &Request, there: &mut SynchronizeRequest) -> io::Result<Response> {
    let fine = |payload: Vec<u8>| Response { status: Some(Status::default()), payload };
    Ok(match request.method.as_str() {
        "Configure" => {
            let ConfigureRequest { runtime_name, runtime_version } = ConfigureRequest::decode(&request.payload[..])?;
            tracing::info!(runtime_name, runtime_version, "the container runtime asks podshmd about its containers");
            fine(ConfigureResponse { events: EVENTS }.encode_to_vec())
        }
        "Synchronize" => {
            let SynchronizeRequest { pods, containers, more } = SynchronizeRequest::decode(&request.payload[..])?;
            there.pods.extend(pods);
            there.containers.extend(containers);
            there.more = more;
            if !more {
                native.look_at(&std::mem::take(there));
            }
            fine(SynchronizeResponse { more }.encode_to_vec())
        }
        "CreateContainer" => {
            let CreateContainerRequest { pod, container } = CreateContainerRequest::decode(&request.payload[..])?;
            let (pod, container) = (pod.unwrap_or_default(), container.unwrap_or_default());
            let adjust = native.adjust(&pod.uid);
            if adjust.is_some() {
                tracing::info!(
                    pod = format!("{}/{}", pod.namespace, pod.name),
                    container = container.name,
                    "joins its domain"
                );
            }
            fine(CreateContainerResponse { adjust }.encode_to_vec())
        }
        // Events that we did not ask for, and the runtime's farewell.
        "Shutdown" | "StateChange" => fine(Vec::new()),
        other => {
            let message = format!("podshm does not know {other}");
            Response { status: Some(Status { code: UNIMPLEMENTED, message }), payload: Vec::new() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::messages::{Container, LinuxContainer, Namespace, PodSandbox};
    use super::*;
    use podshm_unmodified::Place;
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    /// The runtime's side of a connection.
    struct Runtime(UnixStream, Reader<UnixStream>, u32);

    impl Runtime {
        fn accept(listener: &UnixListener) -> Self {
            let (socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut runtime = Runtime(socket.try_clone().unwrap(), Reader::new(socket), 1);
            let register = runtime.1.read().unwrap().unwrap();
            assert_eq!((register.connection, register.kind), (RUNTIME, REQUEST));
            let request = Request::decode(&register.bytes[..]).unwrap();
            let us = RegisterPlugin::decode(&request.payload[..]).unwrap();
            assert_eq!((us.plugin_idx.len(), request.method.as_str()), (2, "RegisterPlugin"));
            Frame::of(RUNTIME, register.stream, RESPONSE, &Response::default()).write(&mut runtime.0).unwrap();
            let configured: ConfigureResponse = runtime.call("Configure", &ConfigureRequest::default());
            assert_eq!(configured.events, EVENTS);
            runtime
        }

        fn call<A: Message + Default>(&mut self, method: &str, message: &impl Message) -> A {
            self.2 += 2;
            let request = Request {
                service: "nri.pkg.api.v1alpha1.Plugin".into(),
                method: method.into(),
                payload: message.encode_to_vec(),
            };
            Frame::of(PLUGIN, self.2, REQUEST, &request).write(&mut self.0).unwrap();
            let answer = self.1.read().unwrap().unwrap();
            assert_eq!((answer.connection, answer.stream, answer.kind), (PLUGIN, self.2, RESPONSE));
            let response = Response::decode(&answer.bytes[..]).unwrap();
            assert_eq!(response.status.unwrap_or_default().code, 0, "{method}");
            A::decode(&response.payload[..]).unwrap()
        }
    }

    fn until(what: impl Fn() -> bool) {
        let begin = Instant::now();
        while !what() {
            assert!(begin.elapsed() < Duration::from_secs(60), "not so");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn containers_of_a_domains_pods_join_it_as_long_as_the_runtime_asks() {
        let socket = std::env::temp_dir().join(format!("podshm-nri-{}", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let native = Arc::new(Native::default());
        assert!(native.why_not().unwrap().contains("podshmd.nri"));
        let plugin = Plugin::start(Arc::clone(&native), socket.clone()).unwrap();
        until(|| native.why_not().is_some_and(|why| why.contains("does not answer at")));
        let listener = UnixListener::bind(&socket).unwrap();
        let place = Place::of("/run/podshm".as_ref(), "legacy").unwrap();
        native.add("u-1", "shop/cart".into(), &place, true);

        let mut runtime = Runtime::accept(&listener);
        let pod = |uid: &str| PodSandbox { id: format!("sandbox-{uid}"), uid: uid.into(), ..PodSandbox::default() };
        let container = |uid: &str, path: &str| Container {
            pod_sandbox_id: format!("sandbox-{uid}"),
            name: format!("of-{path}"),
            state: 3,
            linux: Some(LinuxContainer { namespaces: vec![Namespace { kind: "ipc".into(), path: path.into() }] }),
        };
        let first = SynchronizeRequest { pods: vec![pod("u-1"), pod("u-2")], containers: Vec::new(), more: true };
        assert!(runtime.call::<SynchronizeResponse>("Synchronize", &first).more);
        assert!(!native.is_connected(), "there is more to come");
        let ipc = "/run/podshm/domains/legacy/ipc";
        let all = vec![container("u-1", ipc), container("u-1", "/proc/7/ns/ipc"), container("u-2", "/proc/8/ns/ipc")];
        let last = SynchronizeRequest { pods: Vec::new(), containers: all, more: false };
        assert!(!runtime.call::<SynchronizeResponse>("Synchronize", &last).more);
        until(|| native.is_connected());
        assert_eq!(native.private("legacy"), ["shop/cart/of-/proc/7/ns/ipc"]);

        let create = |uid| CreateContainerRequest { pod: Some(pod(uid)), container: None };
        let joined: CreateContainerResponse = runtime.call("CreateContainer", &create("u-1"));
        let adjust = joined.adjust.unwrap();
        assert_eq!(adjust.linux.unwrap().namespaces, [Namespace { kind: "ipc".into(), path: ipc.into() }]);
        assert_eq!(adjust.mounts[0].source, "/run/podshm/domains/legacy/shm");
        assert_eq!(runtime.call::<CreateContainerResponse>("CreateContainer", &create("u-2")).adjust, None);
        native.remove("u-1");
        assert_eq!(runtime.call::<CreateContainerResponse>("CreateContainer", &create("u-1")).adjust, None);

        drop(runtime);
        until(|| native.why_not().is_some_and(|why| why.contains("has ended the connection")));
        let mut runtime = Runtime::accept(&listener);
        runtime.call::<SynchronizeResponse>("Synchronize", &SynchronizeRequest::default());
        until(|| native.is_connected());
        assert!(native.private("legacy").is_empty());
        drop(plugin);
        assert!(native.why_not().is_some_and(|why| why.contains("about to end")));
        std::fs::remove_file(&socket).unwrap();
    }
}
