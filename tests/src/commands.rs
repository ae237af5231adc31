//! Commands of `bitmesh` beside a node, and shell scripts as a document shows them.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;

use crate::{
    daemon::bitmesh,
    netns::Namespace,
    regtest::{Node, PASSWORD, USER, bitcoind},
};

/// Where commands are typed: a namespace that reaches a node, and a data directory.
pub struct Desk<'a> {
    namespace: &'a Namespace,
    url: String,
    directory: PathBuf,
}

impl<'a> Desk<'a> {
    /// One that reaches `node` at `address`. The directory need not exist.
    pub fn new(namespace: &'a Namespace, node: &Node<'_>, address: &str, directory: &Path) -> Self {
        Self { namespace, url: node.url(address), directory: directory.to_owned() }
    }

    /// A command, with the node and the data directory in its environment.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let mut command = self.namespace.command(program)?;
        command
            .env("BITMESH_NETWORK", "regtest")
            .env("BITMESH_NODE", &self.url)
            .env("BITMESH_NODE_USER", USER)
            .env("BITMESH_NODE_PASSWORD", PASSWORD)
            .env("BITMESH_DATA_DIR", &self.directory)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// `bitmesh ARGS`, not started yet.
    pub fn bitmesh(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.command(&bitmesh()?)?;
        command.args(args);
        Ok(command)
    }

    /// What a command prints; fails with what it says when it fails.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let output = self.bitmesh(args)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", args.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The JSON that a command prints.
    pub fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let text = self.run(&[args, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| args.join(" "))
    }

    /// What a command says that has to fail.
    pub fn fails(&self, args: &[&str]) -> Result<String> {
        let output = self.bitmesh(args)?.output()?;
        if output.status.success() {
            bail!("{} succeeded: {}", args.join(" "), String::from_utf8_lossy(&output.stdout));
        }
        Ok(String::from_utf8(output.stderr)?)
    }

    /// Runs a shell script in `folder`, with `bitmesh` and a `bitcoin-cli` of the node's on its path.
    pub fn script(&self, folder: &Path, node: &Node<'_>, script: &str) -> Result<Output> {
        let programs = folder.join("bin");
        fs::create_dir_all(&programs)?;
        let cli = bitcoind()?.with_file_name("bitcoin-cli");
        let port = node.url("").rsplit(':').next().unwrap_or_default().to_owned();
        let address = self.url.trim_start_matches("http://");
        let address = address.split(':').next().unwrap_or_default();
        let wrapper = format!(
            "#!/bin/sh\nexec '{}' -rpcconnect={address} -rpcport={port} -rpcuser={USER} \
             -rpcpassword={PASSWORD} \"$@\"\n",
            cli.display()
        );
        for (name, content) in [
            ("bitcoin-cli", wrapper),
            ("bitmesh", format!("#!/bin/sh\nexec '{}' \"$@\"\n", bitmesh()?.display())),
        ] {
            let program = programs.join(name);
            fs::write(&program, content)?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        }
        let path = env::var("PATH").unwrap_or_default();
        let mut command = self.command(Path::new("/bin/sh"))?;
        command.args(["-eu", "-c", script]).current_dir(folder);
        command.env("PATH", format!("{}:{path}", programs.display()));
        Ok(command.output()?)
    }
}
