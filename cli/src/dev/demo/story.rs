//! What happens in each step. Operators' steps run the real `keyfold`; kubelet's steps are calls to the driver, shown
//! as the command that would make the same call.

use std::{path::PathBuf, process::Stdio};

use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::csi::v1::NodePublishVolumeRequest;
use rustix::fs::{FsWord, statfs};
use tonic::{Code, Status};

use super::{files, files::VolumeFile, report::say};
use crate::{
    dev::{
        driver::NODE,
        files::{private_folder, write_private},
        kubelet::{Pod, Volume, publish_request},
        process::bare,
        stack::Stack,
    },
    exit::{Exit, Failure},
    output::columns,
};

const OBJECTS: &str = "\
apiVersion: keyfold.dev/v1
kind: Keyspace
metadata: {name: payments}
spec: {description: What the payments team owns}
---
apiVersion: keyfold.dev/v1
kind: AppRole
metadata: {name: payments-api}
spec:
  bind: [{issuer: dev, namespaces: [payments], serviceAccounts: [api]}]
  grants: [{path: payments/*, allow: [read]}]
  nodeBinding: required
";

const ROLE: &str = "payments-api";
const SECRET: &str = "payments/db";
const VOLUME: &str = "secrets";

/// The volume's attribute `secrets`: each field as a file, and all of them as one env file of the owner's alone.
const ITEMS: &str = "\
- path: payments/db
- path: payments/db
  file: db.env
  format: env
  mode: \"0400\"
";

/// The group of the pod's processes.
const FS_GROUP: u32 = 2000;

/// `TMPFS_MAGIC` of statfs(2).
const TMPFS: FsWord = 0x0102_1994;

/// Values of the demonstration; they protect nothing.
const FIRST: [(&str, &str); 2] = [("password", "demo-first-password"), ("username", "payments")];
const SECOND: [(&str, &str); 2] = [("password", "demo-second-password"), ("username", "payments")];

/// The demonstration's world: a running environment, a pod, and its volume.
pub struct Story<'a> {
    stack: &'a Stack,
    folder: PathBuf,
    pod: Pod,
    volume: Volume,
}

impl<'a> Story<'a> {
    /// The story of a pod `payments/api-1` in the environment of `stack`.
    ///
    /// # Errors
    /// When the folder for its files cannot be created.
    pub fn new(stack: &'a Stack) -> Result<Self, Failure> {
        let folder = stack.dir().join("demo");
        private_folder(&folder)?;
        // In a user namespace no group but our own exists.
        let fs_group = stack.driver.mounts_on_host().then_some(FS_GROUP);
        let pod = Pod {
            namespace: "payments".into(),
            name: "api-1".into(),
            service_account: "api".into(),
            node: NODE.into(),
            fs_group,
        };
        let volume = Volume::of_pod(stack.driver.kubelet().dir(), &pod, VOLUME);
        Ok(Self { stack, folder, pod, volume })
    }

    /// The operator declares what exists and who may read it.
    pub async fn declare(&self) -> Result<(), Failure> {
        self.write("objects.yaml", OBJECTS)?;
        say(
            "A keyspace has a key of its own. The role lets the service account payments/api read below payments/.",
        );
        say(OBJECTS);
        self.keyfold("", &["apply", "-f", "objects.yaml"]).await.map(drop)
    }

    /// The operator writes the first version, and the values never stand in a command line.
    pub async fn write_secret(&self) -> Result<(), Failure> {
        self.put(&FIRST).await
    }

    /// Kubelet mounts the volume, with the pod's own token.
    pub async fn publish(&self) -> Result<(), Failure> {
        self.write("secrets.yaml", ITEMS)?;
        say("The pod's volume names the role and these secrets (secrets.yaml):");
        say(ITEMS);
        say("Kubelet calls NodePublishVolume with the pod's token; by hand:");
        say(&format!("$ keyfold dev mount {} {VOLUME}", self.mount_arguments(&self.pod)));
        self.publish_for(&self.pod, &self.volume).await.map_err(|status| refused(&status))?;
        say(&format!("{}", self.seen().display()));
        Ok(())
    }

    /// The pod finds its files.
    pub async fn show_files(&self) -> Result<(), Failure> {
        let file_system = statfs(self.seen()).map_err(|error| wrong(&error.to_string()))?;
        expect(file_system.f_type == TMPFS, "the files are not on a tmpfs")?;
        let group = self.pod.fs_group.map_or("", |_| " The group is the pod's fsGroup.");
        say(&format!("On a tmpfs, so in memory only.{group} Nobody else may read:"));
        self.expect_files(&FIRST)
    }

    /// A new version reaches the running pod at kubelet's next call.
    pub async fn change_secret(&self) -> Result<(), Failure> {
        let before = files::generation(&self.seen())?;
        self.put(&SECOND).await?;
        say(
            "Kubelet calls again each minute or so (requiresRepublish). All files change at once, by one rename:",
        );
        self.publish_for(&self.pod, &self.volume).await.map_err(|status| refused(&status))?;
        let after = files::generation(&self.seen())?;
        expect(before != after, "the files were not replaced")?;
        say(&format!("..data -> {}   (was {})", after.display(), before.display()));
        self.expect_files(&SECOND)
    }

    /// The keyspace's key is turned while the pod runs.
    pub async fn rotate_key(&self) -> Result<(), Failure> {
        self.keyfold("", &["key", "rotate", "payments"]).await?;
        self.keyfold("", &["key", "list"]).await?;
        say("Kubelet calls again: the same files, from data keys that the new key wraps.");
        self.publish_for(&self.pod, &self.volume).await.map_err(|status| refused(&status))?;
        self.expect_files(&SECOND)?;
        let value = self.keyfold("", &["secret", "get", SECRET, "--output", "json"]).await?;
        expect(value.contains(SECOND[0].1), "the operator reads another value")
    }

    /// A pod of another service account gets nothing, and its event says why.
    pub async fn refuse(&self) -> Result<(), Failure> {
        let other = Pod { name: "reports-0".into(), service_account: "reports".into(), ..self.pod.clone() };
        let volume = Volume::of_pod(self.stack.driver.kubelet().dir(), &other, VOLUME);
        say("The pod payments/reports-0 asks for the same, as the service account payments/reports:");
        say(&format!("$ keyfold dev mount {} {VOLUME}", self.mount_arguments(&other)));
        let answer = self.publish_for(&other, &volume).await;
        let Err(status) = answer else { return expect(false, "the other pod got the secret") };
        say("Its event in Kubernetes:");
        say(&event(&status));
        expect(status.code() == Code::PermissionDenied, "the refusal has another code")?;
        expect(!self.stack.driver.mounts().contains(&volume.target), "its volume is mounted")
    }

    /// Everything above stands in the audit log.
    pub async fn read_audit_log(&self) -> Result<(), Failure> {
        say("Each operation has its entry, committed before a value left the server:");
        let log = self.keyfold("", &["audit", "list"]).await?;
        for expected in ["system:serviceaccount:payments:api", "system:serviceaccount:payments:reports"] {
            expect(log.contains(expected), &format!("the log has no entry of {expected}"))?;
        }
        Ok(())
    }

    /// The pod ends.
    pub async fn unpublish(&self) -> Result<(), Failure> {
        say("The pod ends. Kubelet calls NodeUnpublishVolume; by hand:");
        say(&format!("$ keyfold dev unmount --dir {} {VOLUME}", self.stack.dir().display()));
        self.stack.driver.kubelet().unpublish(&self.volume).await.map_err(|status| refused(&status))?;
        let left = self.stack.driver.mounts();
        expect(left.is_empty(), &format!("still mounted: {left:?}"))?;
        expect(!self.seen().exists(), "the volume's folder is still there")?;
        say("Nothing is mounted any more, and the volume's folder is gone.");
        Ok(())
    }

    async fn put(&self, fields: &[(&str, &str)]) -> Result<(), Failure> {
        let json = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).into()));
        let json = serde_json::Value::Object(json.collect()).to_string();
        say(
            "Values come from a file or standard input, never from the command line. These are the demonstration's:",
        );
        self.keyfold(&json, &["secret", "put", SECRET, "--json", "-"]).await.map(drop)
    }

    /// Runs `keyfold` as the administrator, prints the command and what it printed, and gives the latter.
    async fn keyfold(&self, input: &str, arguments: &[&str]) -> Result<String, Failure> {
        let prefix = if input.is_empty() { String::new() } else { format!("echo '{input}' | ") };
        say(&format!("$ {prefix}keyfold {}", arguments.join(" ")));
        let failed = |error| Failure::io("cannot run keyfold", &error);
        let file = self.stack.dev_file();
        let mut command = bare(&std::env::current_exe().map_err(failed)?);
        command
            .args(arguments)
            .env("KEYFOLD_SERVER", &file.server)
            .env("KEYFOLD_CA_FILE", &file.ca)
            .env("KEYFOLD_TOKEN_FILE", &file.admin_token_file)
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            use tokio::io::AsyncWriteExt as _;
            stdin.write_all(input.as_bytes()).await.map_err(failed)?;
        }
        let output = child.wait_with_output().await.map_err(failed)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        say(&out);
        match output.status.success() {
            true => Ok(out.into_owned()),
            false => Err(Failure::new(
                Exit::Internal,
                format!("keyfold {} failed", arguments.join(" ")),
                err.trim(),
            )),
        }
    }

    async fn publish_for(&self, pod: &Pod, volume: &Volume) -> Result<(), Status> {
        self.stack
            .driver
            .kubelet()
            .publish(self.request(pod, volume).map_err(|failure| Status::internal(failure.to_string()))?)
            .await
    }

    /// The request with a token minted for this call, as kubelet's is.
    fn request(&self, pod: &Pod, volume: &Volume) -> Result<NodePublishVolumeRequest, Failure> {
        let token = self.stack.minter.mint(&pod.token_request(), SystemClock.now())?;
        Ok(publish_request(pod, volume, &token, &[("role", ROLE), ("secrets", ITEMS)]))
    }

    fn mount_arguments(&self, pod: &Pod) -> String {
        let Pod { namespace, service_account, name, fs_group, .. } = pod;
        let group = fs_group.map(|group| format!(" --fs-group {group}")).unwrap_or_default();
        format!(
            "--dir {} --role {ROLE} --secrets secrets.yaml --namespace {namespace} --service-account {service_account} \
             --pod {name}{group}",
            self.stack.dir().display()
        )
    }

    fn write(&self, name: &str, content: &str) -> Result<(), Failure> {
        write_private(&self.folder.join(name), content.as_bytes())
    }

    /// The volume's path as this process sees it.
    fn seen(&self) -> PathBuf {
        self.stack.driver.seen(&self.volume.target)
    }

    /// Prints the volume's files and compares them with what `fields` make.
    fn expect_files(&self, fields: &[(&str, &str)]) -> Result<(), Failure> {
        let files = files::read(&self.seen())?;
        say(columns(files.iter().map(row)).trim_end());
        expect(files.len() == fields.len() + 1, "there are other files than the volume names")?;
        for (field, value) in fields {
            let name = format!("db/{field}");
            let file = find(&files, &name)?;
            expect(file.content == *value, &format!("{name} holds something else"))?;
            expect(file.mode == 0o440, &format!("{name} has another mode"))?;
            if let Some(group) = self.pod.fs_group {
                expect(file.owner.1 == group, &format!("{name} belongs to another group"))?;
            }
            let env = find(&files, "db.env")?;
            expect(env.mode == 0o400 && env.content.contains(value), "db.env is another file")?;
        }
        Ok(())
    }
}

fn find<'a>(files: &'a [VolumeFile], name: &str) -> Result<&'a VolumeFile, Failure> {
    files.iter().find(|file| file.name == name).ok_or_else(|| wrong(&format!("there is no file {name}")))
}

fn row(file: &VolumeFile) -> [String; 4] {
    let owner = format!("{}:{}", file.owner.0, file.owner.1);
    // The env file has a line for each field; a table has one for each file.
    let content = file.content.lines().collect::<Vec<_>>().join(" ");
    [format!("-{}", file.permissions()), owner, file.name.clone(), content]
}

/// What `kubectl describe pod` shows of a failed mount.
fn event(status: &Status) -> String {
    format!(
        "Warning  FailedMount  MountVolume.SetUp failed for volume \"{VOLUME}\" : rpc error: code = {:?} desc = {}",
        status.code(),
        status.message()
    )
}

fn refused(status: &Status) -> Failure {
    Failure::rpc("the driver refused", status)
}

fn expect(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(wrong(otherwise)) }
}

fn wrong(why: &str) -> Failure {
    Failure::new(Exit::Internal, "something else happened than was to be shown", why)
}
