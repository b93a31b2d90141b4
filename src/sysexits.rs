//! Exit codes, as sysexits(3) numbers them.
//! What does a script learn from how we ended?

/// `EX_USAGE`: the command line is wrong. clap uses 2; so do we, as `check` promises.
pub const USAGE: u8 = 2;
/// `EX_NOINPUT`
pub const NO_INPUT: u8 = 66;
/// `EX_NOUSER`: this host has no such user.
pub const NO_USER: u8 = 67;
/// `EX_UNAVAILABLE`
pub const UNAVAILABLE: u8 = 69;
/// `EX_SOFTWARE`
pub const SOFTWARE: u8 = 70;
/// `EX_OSERR`
pub const OS_ERROR: u8 = 71;
/// `EX_CANTCREAT`
pub const CANNOT_CREATE: u8 = 73;
/// `EX_IOERR`
pub const IO_ERROR: u8 = 74;
/// `EX_TEMPFAIL`: somebody else is at it.
pub const TEMPORARY: u8 = 75;
/// `EX_NOPERM`
pub const NO_PERMISSION: u8 = 77;
/// `EX_CONFIG`
pub const CONFIG: u8 = 78;
