//! Extended attributes of what an open directory holds, without opening it.
//!
//! Two ways lead there as long as no `listxattrat` is at hand. The directory's descriptor in `/proc` is always right and
//! costs a multiple of everything else that a walk does. The path from `/` is cheap, but others may have put something
//! else there. So the path is only asked whether there are any attributes, which hardly a file has: at worst it hides
//! some (the walk looks whether the path still leads where it did, and reports it if not), and it never lends a file
//! the attributes of another.

use crate::entry::Xattr;
use rustix::fs;
use rustix::io::Errno;
use std::ffi::{CStr, OsStr};
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// As much as the kernel gives for a list or a value.
const MOST: usize = 64 << 10;

/// Asks the path.
pub fn has_none(path: &[u8]) -> bool {
    fs::llistxattr_query(path) == Ok(0)
}

#[derive(Default)]
pub struct Reader {
    /// Device of the last name whose file system knows no extended attributes.
    plain_device: Option<(u32, u32)>,
    buffer: Vec<u8>,
    own_path: Vec<u8>,
}

impl Reader {
    /// Sorted by name. `path`, if given, led to the directory when it was opened.
    pub fn read(
        &mut self,
        directory: &OwnedFd,
        name: &CStr,
        path: Option<&[u8]>,
        device: (u32, u32),
        mut failed: impl FnMut(&str, Errno),
    ) -> Option<Vec<Xattr>> {
        if self.plain_device == Some(device) {
            return None;
        }
        if path.is_some_and(has_none) {
            return None;
        }
        self.own_path.clear();
        let _ = write!(self.own_path, "/proc/self/fd/{}/", directory.as_raw_fd()); // a Vec takes everything
        self.own_path.extend_from_slice(if name.is_empty() { b"." } else { name.to_bytes() });
        let own = self.own_path.as_slice();
        self.buffer.resize(MOST, 0);
        let names = match fs::llistxattr(own, &mut self.buffer[..]) {
            Ok(0) => return None,
            Ok(length) => self.buffer[..length].to_vec(),
            Err(Errno::OPNOTSUPP) => {
                self.plain_device = Some(device);
                return None;
            }
            // Whoever reads its content reports it.
            Err(Errno::NOENT) if Path::new("/proc/self/fd").exists() => return None,
            Err(error) => {
                failed("list the extended attributes", error);
                return None;
            }
        };
        let mut xattrs = Vec::new();
        for attribute in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            match fs::lgetxattr(own, attribute, &mut self.buffer[..]) {
                Ok(length) => xattrs.push(Xattr { name: attribute.to_vec(), value: self.buffer[..length].to_vec() }),
                Err(Errno::NODATA) => {}
                Err(error) => {
                    let name = OsStr::from_bytes(attribute).display();
                    failed(&format!("read the extended attribute {name}"), error);
                }
            }
        }
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        (!xattrs.is_empty()).then_some(xattrs)
    }
}
