//! Archives and packages that try to use up or leave what they are unpacked into.
