// Running kernels on fibers: what the stand-in driver asks for.
#pragma once

#include "simt.h"
#include <string>

namespace simt {

// Calls a kernel with the parameters that the driver was given.
using Entry = void (*)(void** parameters);

// Runs a kernel over its grid. Returns false where a fault ended it; `message` then says which.
bool launch(dim3 grid, dim3 block, Entry entry, void** parameters, std::string& message);

// Where the orders of threads, warps, blocks and streams are drawn from.
void set_seed(uint64_t seed);
uint64_t draw(uint64_t below);

// Skips every site of that name (`file.cu:line`; ldmatrix transposes what it should not, or not what it should), or none when empty. Returns how many of the sites met so far have the name.
int skip(const char* name);

// The sites met so far, one `kind file.cu:line` a line.
std::string sites();

}  // namespace simt
