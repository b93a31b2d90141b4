//! The store of sealed captures: one object per delivery, named by tenant, date and request id.
//! Which captures does a store have, and which of them are erased?

mod erasure;
mod name;
mod s3;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::names::{CaptureName, TenantName};
pub use erasure::ObjectDigest;
pub use name::ObjectName;
pub use s3::{get_object, open_bucket, put_object};

/// A sealed capture in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCapture {
    pub name: ObjectName,
    /// Bytes.
    pub size: u64,
}

/// The open store of one section `[captures.NAME]`. Sections may share a folder or bucket: the name of the section is
/// part of each path.
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// `None`: the store is a bucket.
    folder: Option<PathBuf>,
}

impl Store {
    /// `store`: a folder, or the URL of a bucket, `s3://BUCKET/PREFIX`.
    pub fn open(store: &Path, capture: &CaptureName) -> io::Result<Self> {
        if let Some(objects) = open_bucket(store, capture.as_str())? {
            return Ok(Self { objects: Arc::new(objects), folder: None });
        }
        let folder = store.join(capture.as_str());
        create_folder(&folder)?;
        let files = LocalFileSystem::new_with_prefix(&folder)?.with_automatic_cleanup(true).with_fsync(true);
        Ok(Self { objects: Arc::new(files), folder: Some(folder) })
    }

    /// Deletes the files that a process could not finish before it was killed. No other process may write to the store.
    pub fn remove_unfinished(&self) -> io::Result<()> {
        self.folder.as_deref().map_or(Ok(()), remove_unfinished)
    }

    /// Stores a sealed capture: completely, or not at all.
    pub async fn put(&self, name: &ObjectName, sealed: Vec<u8>) -> io::Result<()> {
        self.folder.as_deref().map_or(Ok(()), create_folder)?; // an operator may have deleted it
        self.objects.put(&name.location()?, sealed.into()).await?;
        Ok(())
    }

    /// Returns the captures of a tenant, or all, the oldest of each tenant first. Other objects are skipped.
    pub async fn list(&self, tenant: Option<&TenantName>) -> io::Result<Vec<StoredCapture>> {
        let prefix = tenant.map(|tenant| object_store::path::Path::parse(tenant.file_name())).transpose();
        let prefix = prefix.map_err(io::Error::other)?;
        let objects: Vec<_> = self.objects.list(prefix.as_ref()).try_collect().await?;
        let capture = |object: object_store::ObjectMeta| {
            Some(StoredCapture { name: ObjectName::parse(object.location.as_ref())?, size: object.size })
        };
        let mut captures: Vec<_> = objects.into_iter().filter_map(capture).collect();
        captures.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(captures)
    }

    pub async fn get(&self, name: &ObjectName) -> io::Result<Bytes> {
        Ok(self.objects.get(&name.location()?).await?.bytes().await?)
    }
}

/// Creates a folder, and all folders above it, for the user of this process only.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Returns whether a store is a bucket, and not a folder.
pub fn is_bucket(store: &Path) -> bool {
    store.starts_with("s3:")
}

/// The crate object_store writes the file `NAME#NUMBER` and then renames it. It lists no such file.
#[expect(clippy::disallowed_methods, reason = "deletes unfinished files of sealed captures")]
fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_unfinished(&entry.path())?;
        } else if entry.file_name().to_string_lossy().contains(".age#") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
