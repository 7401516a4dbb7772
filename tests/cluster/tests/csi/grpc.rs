//! The little gRPC that asking a driver takes: one request, one answer, over a Unix socket.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::path::Path;
use tokio::net::UnixStream;

/// What a call ends with: gRPC's code, 0 for done, and its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: u32,
    pub words: String,
}

/// Calls a method, `csi.v1.Node/NodePublishVolume`, whose answer has no fields that matter.
pub fn call(socket: &Path, method: &str, request: &impl Message) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let body = request.encode_to_vec();
    // Not compressed, and how long it is.
    let length = u32::try_from(body.len()).expect("a short request").to_be_bytes();
    let framed = [&[0][..], &length, &body].concat();
    runtime.block_on(async {
        let stream = UnixStream::connect(socket).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post(format!("http://podshmd/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(framed)))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        // An error may have no body, and then its status is among the headers.
        let headers = answer.headers().clone();
        let trailers = answer.into_body().collect().await.unwrap().trailers().cloned().unwrap_or_default();
        let said = |name: &str| {
            let found = trailers.get(name).or_else(|| headers.get(name));
            found.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
        };
        Ended { code: said("grpc-status").parse().expect("a status"), words: said("grpc-message") }
    })
}
