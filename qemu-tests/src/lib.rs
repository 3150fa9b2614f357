//! The lab: Farhold images in QEMU under real firmware, and what the tests and `farhold lab` share to drive them.
