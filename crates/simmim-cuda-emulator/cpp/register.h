// Makes kernels known to the stand-in driver by name, with the sizes of their parameters.
#pragma once

#include "fibers.h"

#include <map>
#include <utility>
#include <vector>

namespace simt {

struct Kernel {
    Entry entry;
    std::vector<size_t> sizes;
};

inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> table;
    return table;
}

template <auto kernel>
struct Thunk;
template <class... A, void (*kernel)(A...)>
struct Thunk<kernel> {
    template <size_t... I>
    static void call(void** parameters, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_reference_t<A>*>(parameters[I])...);
    }
    static void run(void** parameters) { call(parameters, std::index_sequence_for<A...>{}); }
    static bool add(const char* name) {
        kernels()[name] = {run, {sizeof(A)...}};
        return true;
    }
};

}  // namespace simt

#define REGISTER(name) static const bool name##_is_known = simt::Thunk<name>::add(#name);
