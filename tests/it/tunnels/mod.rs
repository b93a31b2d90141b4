//! CONNECT: opaque, inspected and upgrading.

mod ends;
mod inspected;
mod opaque;
mod targets;
mod upgrade;
