// What the stand-in of cuBLASLt asks of the stand-in driver.
#pragma once

#include <functional>

// Puts work on a stream, or into the graph that the stream captures.
extern "C" int emulator_put(void* stream, std::function<void()> run);
