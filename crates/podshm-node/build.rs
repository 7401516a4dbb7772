//! Makes the gRPC plumbing of the services that the kubelet calls. Their messages are in src/messages.rs; no protoc is needed.

use tonic_build::manual::{Builder, Method, Service};

fn service(package: &str, name: &str, methods: &[(&str, &str, &str, &str)]) -> Service {
    methods
        .iter()
        .fold(Service::builder().name(name).package(package), |service, (call, route, input, output)| {
            service.method(
                Method::builder()
                    .name(*call)
                    .route_name(*route)
                    .input_type(format!("crate::messages::{input}"))
                    .output_type(format!("crate::messages::{output}"))
                    .codec_path("tonic_prost::ProstCodec")
                    .build(),
            )
        })
        .build()
}

fn main() {
    let identity = service(
        "csi.v1",
        "Identity",
        &[
            ("get_plugin_info", "GetPluginInfo", "Nothing", "PluginInfo"),
            ("get_plugin_capabilities", "GetPluginCapabilities", "Nothing", "PluginCapabilities"),
            ("probe", "Probe", "Nothing", "ProbeResponse"),
        ],
    );
    let node = service(
        "csi.v1",
        "Node",
        &[
            ("node_publish_volume", "NodePublishVolume", "PublishRequest", "Nothing"),
            ("node_unpublish_volume", "NodeUnpublishVolume", "UnpublishRequest", "Nothing"),
            ("node_get_capabilities", "NodeGetCapabilities", "Nothing", "NodeCapabilities"),
            ("node_get_info", "NodeGetInfo", "Nothing", "NodeInfo"),
        ],
    );
    let registration = service(
        "pluginregistration",
        "Registration",
        &[
            ("get_info", "GetInfo", "Nothing", "RegistrationInfo"),
            ("notify_registration_status", "NotifyRegistrationStatus", "RegistrationStatus", "Nothing"),
        ],
    );
    Builder::new().build_client(false).compile(&[identity, node, registration]);
}
