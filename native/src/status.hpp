// How an error leaves the library: thrown as Error inside, returned as a status with a message at the border.
#pragma once

#include "kvmerge.h"

#include <cstdarg>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

namespace kvmerge {

struct Error : std::runtime_error {
    kvmerge_status status;
    Error(kvmerge_status status, const std::string & what) : std::runtime_error(what), status(status) {}
};

#if defined(__GNUC__) // checks the arguments against the format
std::string text(const char * format, ...) __attribute__((format(printf, 1, 2)));
#endif
inline std::string text(const char * format, ...) {
    char buffer[512];
    va_list args;
    va_start(args, format);
    std::vsnprintf(buffer, sizeof buffer, format, args);
    va_end(args);
    return buffer;
}

inline void require(bool condition, const char * what) {
    if (!condition) {
        throw Error(KVMERGE_E_ARGUMENT, what);
    }
}

void set_last_error(const char * message) noexcept;

// Runs an entry's body; nothing it throws gets out.
template <class Body>
kvmerge_status guarded(const char * entry, Body && body) noexcept {
    const auto fail = [entry](kvmerge_status status, const char * what) noexcept {
        char message[640];
        std::snprintf(message, sizeof message, "%s: %s", entry, what);
        set_last_error(message);
        return status;
    };
    try {
        body();
        set_last_error("");
        return KVMERGE_OK;
    } catch (const Error & e) {
        return fail(e.status, e.what());
    } catch (const std::bad_alloc &) {
        return fail(KVMERGE_E_MEMORY, "out of memory");
    } catch (const std::exception & e) {
        return fail(KVMERGE_E_STATE, e.what());
    } catch (...) {
        return fail(KVMERGE_E_STATE, "unknown error");
    }
}

} // namespace kvmerge
