//! Connections that break, and servers that die.
