// The part of a kernel library that the Rust side finds: the table of what it needs, and the functions that g++'s
// thread sanitizer calls before each load and store of a checked build. Never checked itself.
#include "emulate.h"

// The first and the last byte of the library: what lies between is no array of a kernel's.
extern "C" {
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));
}

namespace emulate {

Context* current;
const Runtime* runtime;
Entry* entries;

/// The Rust side has the same struct, in abi.rs.
struct Library {
    unsigned version;
    unsigned checked;
    Context** current;
    const Runtime** runtime;
    Entry** entries;
    const char *start, *end;
};

} // namespace emulate

extern "C" {

__attribute__((visibility("default"), used)) emulate::Library limpid_emulator_library = {
    2, EMULATE_IS_CHECKED, &emulate::current, &emulate::runtime, &emulate::entries, __ehdr_start, _end};

#define HOOK(name, size, kind)                                                                                         \
    void name(void* address) {                                                                                         \
        emulate::runtime->access(emulate::current, address, size, emulate::kind, __builtin_return_address(0));       \
    }
#define HOOKS(size)                                                                                                    \
    HOOK(__tsan_read##size, size, READ)                                                                                \
    HOOK(__tsan_write##size, size, WRITE)                                                                              \
    HOOK(__tsan_volatile_read##size, size, READ)                                                                       \
    HOOK(__tsan_volatile_write##size, size, WRITE)                                                                     \
    HOOK(__tsan_unaligned_read##size, size, READ_UNALIGNED)                                                            \
    HOOK(__tsan_unaligned_write##size, size, WRITE_UNALIGNED)                                                          \
    HOOK(__tsan_unaligned_volatile_read##size, size, READ_UNALIGNED)                                                   \
    HOOK(__tsan_unaligned_volatile_write##size, size, WRITE_UNALIGNED)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* address, unsigned long size) {
    emulate::runtime->access(emulate::current, address, size, emulate::READ_UNALIGNED, __builtin_return_address(0));
}
void __tsan_write_range(void* address, unsigned long size) {
    emulate::runtime->access(emulate::current, address, size, emulate::WRITE_UNALIGNED, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
