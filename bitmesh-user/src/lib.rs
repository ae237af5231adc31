//! BitMesh
