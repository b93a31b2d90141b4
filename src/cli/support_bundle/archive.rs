//! A compressed tar archive in the format ustar (POSIX.1-2017, pax).
//! How do several texts become one file that every system can open?

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

/// The length of a header, and of the units that contents fill.
const BLOCK: usize = 512;

/// Returns an archive with these files below one folder, readable by their owner alone.
pub(super) fn tar_gz(folder: &str, files: &[(String, Vec<u8>)], unix_time: i64) -> io::Result<Vec<u8>> {
    let mut archive = GzEncoder::new(Vec::new(), Compression::default());
    for (name, content) in files {
        archive.write_all(&header(&format!("{folder}/{name}"), content.len(), unix_time))?;
        archive.write_all(content)?;
        archive.write_all(&vec![0; content.len().next_multiple_of(BLOCK) - content.len()])?;
    }
    // Two empty blocks end an archive.
    archive.write_all(&[0; 2 * BLOCK])?;
    archive.finish()
}

fn header(name: &str, length: usize, unix_time: i64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |offset: usize, text: &str| header[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    put(0, &name[..name.len().min(100)]);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{length:011o}\0"));
    put(136, &format!("{:011o}\0", unix_time.max(0)));
    // The checksum counts its own field as spaces.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
