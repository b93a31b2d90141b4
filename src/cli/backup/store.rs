//! The place of backups: a folder, or a bucket of an S3-compatible service.
//! How does a stream become an object, and an object a stream?

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};
use tokio::runtime::Runtime;

use crate::capture_store::{create_folder, open_bucket};

/// The bytes that are in memory at a time. S3 takes no smaller part, except the last (5 MiB).
const PART: usize = 8 << 20;

/// The extension of a backup.
pub(super) const EXTENSION: &str = ".tar.gz.age";

pub(super) struct BackupStore {
    objects: Arc<dyn ObjectStore>,
    runtime: Arc<Runtime>,
}

impl BackupStore {
    /// `store`: a folder, or the URL of a bucket, `s3://BUCKET/PREFIX`. A folder is created if it does not exist and
    /// `creates` is set.
    pub(super) fn open(store: &Path, creates: bool, runtime: Arc<Runtime>) -> io::Result<Self> {
        if let Some(objects) = open_bucket(store, "")? {
            return Ok(Self { objects: Arc::new(objects), runtime });
        }
        if creates {
            create_folder(store)?;
        }
        let files = LocalFileSystem::new_with_prefix(store)?.with_fsync(true);
        Ok(Self { objects: Arc::new(files), runtime })
    }

    /// Begins an object, which exists once it is finished.
    pub(super) fn create(&self, name: &str) -> io::Result<ObjectWriter> {
        let upload = self.runtime.block_on(self.objects.put_multipart(&name.into()))?;
        let upload = Some(WriteMultipart::new_with_chunk_size(upload, PART));
        Ok(ObjectWriter { upload, runtime: Arc::clone(&self.runtime) })
    }

    pub(super) fn read(&self, name: &str) -> io::Result<ObjectReader> {
        let location = name.into();
        let size = self.runtime.block_on(self.objects.head(&location))?.size;
        let (objects, runtime) = (Arc::clone(&self.objects), Arc::clone(&self.runtime));
        Ok(ObjectReader { objects, location, runtime, next: 0, size, part: Bytes::new() })
    }

    /// Returns the name of the newest backup, by the time when it was stored.
    pub(super) fn newest(&self) -> io::Result<Option<String>> {
        let objects: Vec<_> = self.runtime.block_on(self.objects.list(None).try_collect())?;
        let backups = objects.into_iter().filter(|object| object.location.as_ref().ends_with(EXTENSION));
        let newest = backups.max_by(|a, b| (a.last_modified, &a.location).cmp(&(b.last_modified, &b.location)));
        Ok(newest.map(|object| object.location.to_string()))
    }
}

/// Writes an object in parts.
pub(super) struct ObjectWriter {
    /// `None`: the object is finished.
    upload: Option<WriteMultipart>,
    runtime: Arc<Runtime>,
}

impl ObjectWriter {
    /// Writes the last part, after which the object exists.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if let Some(upload) = self.upload.take() {
            self.runtime.block_on(upload.finish())?;
        }
        Ok(())
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            // A service keeps the parts of an upload that does not end.
            let _ = self.runtime.block_on(upload.abort());
        }
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(upload) = &mut self.upload {
            self.runtime.block_on(async {
                upload.write(bytes);
                upload.wait_for_capacity(1).await
            })?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads an object in parts.
pub(super) struct ObjectReader {
    objects: Arc<dyn ObjectStore>,
    location: object_store::path::Path,
    runtime: Arc<Runtime>,
    /// The first byte after `part`.
    next: u64,
    size: u64,
    part: Bytes,
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.part.is_empty() && self.next < self.size {
            let end = self.size.min(self.next + PART as u64);
            self.part = self.runtime.block_on(self.objects.get_range(&self.location, self.next..end))?;
            self.next = end;
        }
        let length = buffer.len().min(self.part.len());
        self.part.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
