//! Sockets at fixed paths that one daemon hands to the next: bound under another name and renamed, so that there is no moment
//! without one; removed at the end only by the daemon whose socket is there.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A socket file of ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

/// Listens at a path, in place of whoever listened there.
pub fn listen(path: &Path) -> io::Result<(SocketFile, UnixListener)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The kubelet's watcher passes over names that start with a dot.
    let next = path.with_file_name(format!(".{name}.next"));
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&next)?;
    fs::set_permissions(&next, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    let inode = fs::metadata(&next)?.ino();
    fs::rename(&next, path)?;
    Ok((SocketFile { path: path.to_owned(), inode }, listener))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another daemon's, once it has taken over.
        if fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_successors_socket_is_nobodys_to_remove() {
        let directory = std::env::temp_dir().join(format!("podshm-sockets-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("csi.sock");
        let (old, _listener) = listen(&path).unwrap();
        let (new, _successor) = listen(&path).unwrap();
        drop(old);
        UnixStream::connect(&path).unwrap();
        drop(new);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "its own is removed");
        fs::remove_dir_all(&directory).unwrap();
    }
}
