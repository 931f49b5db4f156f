//! Where host and client run: on loopback, in two network namespaces joined by a veth pair, or in namespaces made elsewhere.

use std::process::{Command, Stdio};

use super::Failure;

const HOST_NAMESPACE: &str = "wormhole-bench-h";
const CLIENT_NAMESPACE: &str = "wormhole-bench-c";

/// The network of one run; what it made is removed when dropped.
pub(crate) struct Net {
    /// For people: what the network is.
    pub name: String,
    /// Address at which the client reaches the host.
    pub address: String,
    host_namespace: Option<String>,
    client_namespace: Option<String>,
    ours: bool,
}

impl Net {
    /// Both ends on 127.0.0.1.
    pub(crate) fn loopback() -> Self {
        Self {
            name: "loopback".into(),
            address: "127.0.0.1".into(),
            host_namespace: None,
            client_namespace: None,
            ours: false,
        }
    }

    /// Namespaces that exist, such as those of a WAN emulator.
    pub(crate) fn given(name: &str, host: &str, client: &str, address: &str) -> Self {
        Self {
            name: name.into(),
            address: address.into(),
            host_namespace: Some(host.into()),
            client_namespace: Some(client.into()),
            ours: false,
        }
    }

    /// Two namespaces of our own, MTU 1,500. Needs root.
    pub(crate) fn veth() -> Result<Self, Failure> {
        let mut net = Self::given("veth", HOST_NAMESPACE, CLIENT_NAMESPACE, "10.78.0.1");
        net.ours = true;
        net.remove();
        for words in [
            format!("netns add {HOST_NAMESPACE}"),
            format!("netns add {CLIENT_NAMESPACE}"),
            format!(
                "link add wb0 netns {HOST_NAMESPACE} mtu 1500 type veth peer name wb0 netns {CLIENT_NAMESPACE} mtu 1500"
            ),
            format!("-n {HOST_NAMESPACE} addr add 10.78.0.1/24 dev wb0"),
            format!("-n {CLIENT_NAMESPACE} addr add 10.78.0.2/24 dev wb0"),
            format!("-n {HOST_NAMESPACE} link set wb0 up"),
            format!("-n {CLIENT_NAMESPACE} link set wb0 up"),
            format!("-n {HOST_NAMESPACE} link set lo up"),
            format!("-n {CLIENT_NAMESPACE} link set lo up"),
        ] {
            let done =
                Command::new("ip").args(words.split(' ')).status().map_err(|error| format!("ip: {error}"))?;
            if !done.success() {
                return Err(format!("ip {words} failed; a veth pair needs root").into());
            }
        }
        Ok(net)
    }

    /// `program`, to be run where the host is.
    pub(crate) fn host_command(&self, program: &str) -> Command {
        command_in(self.host_namespace.as_deref(), program)
    }

    /// `program`, to be run where the client is.
    pub(crate) fn client_command(&self, program: &str) -> Command {
        command_in(self.client_namespace.as_deref(), program)
    }

    fn remove(&self) {
        for namespace in [&self.host_namespace, &self.client_namespace].into_iter().flatten() {
            // Absent at first; at the end there is nobody to tell.
            let _ = Command::new("ip").args(["netns", "del", namespace]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if self.ours {
            self.remove();
        }
    }
}

/// `nsenter` and not `ip netns exec`: that would make a mount namespace, and the mount would be seen by nobody else.
fn command_in(namespace: Option<&str>, program: &str) -> Command {
    let Some(namespace) = namespace else { return Command::new(program) };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/var/run/netns/{namespace}")).arg("--").arg(program);
    command
}
