//! bitmesh-common
#![no_std]
