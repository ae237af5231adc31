//! bitmesh-ebpf
#![no_std]
