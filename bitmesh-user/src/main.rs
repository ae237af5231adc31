//! bitmesh-user
fn main() {}
