//! The exit codes, with the numbers of sysexits(3).
//! How does a script learn why a command ended?

/// The command line is wrong. The value is clap's 2, not 64 (`EX_USAGE`); the help of `check` documents it.
pub const USAGE: u8 = 2;
/// `EX_DATAERR`: the input data is wrong.
pub const DATA: u8 = 65;
/// `EX_NOINPUT`: an input file is missing or unreadable.
pub const NO_INPUT: u8 = 66;
/// `EX_NOUSER`: the host has no such user.
pub const NO_USER: u8 = 67;
/// `EX_UNAVAILABLE`: a service that the command needs does not respond.
pub const UNAVAILABLE: u8 = 69;
/// `EX_SOFTWARE`: an internal error.
pub const SOFTWARE: u8 = 70;
/// `EX_OSERR`: the operating system refused a resource.
pub const OS_ERROR: u8 = 71;
/// `EX_CANTCREAT`: an output file cannot be created.
pub const CANNOT_CREATE: u8 = 73;
/// `EX_IOERR`: an output cannot be written.
pub const IO_ERROR: u8 = 74;
/// `EX_TEMPFAIL`: another process holds a lock. The command may succeed later.
pub const TEMPORARY: u8 = 75;
/// `EX_NOPERM`: the user lacks a permission.
pub const NO_PERMISSION: u8 = 77;
/// `EX_CONFIG`: the configuration has problems.
pub const CONFIG: u8 = 78;
