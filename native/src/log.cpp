// Versions, errors, llama.cpp's log and its ending early.
#include "handles.hpp"
#include "kernels/kernels.hpp"
#include "status.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>

namespace kvmerge {

static thread_local char last_error[640] = "";

void set_last_error(const char * message) noexcept {
    std::snprintf(last_error, sizeof last_error, "%s", message);
}

} // namespace kvmerge

struct kvmerge_log {
    std::mutex mutex;
    bool echo = false;
    bool keeping = false; // the last line was kept, so its continuation is too
    std::string kept;
};

using namespace kvmerge;

static Handles<kvmerge_log> & logs() {
    static Handles<kvmerge_log> handles(3, 0, "log");
    return handles;
}

extern "C" {

const char * kvmerge_version(void) {
    return KVMERGE_VERSION;
}

const char * kvmerge_isa(void) {
    const char * isa = "";
    guarded("kvmerge_isa", [&] { isa = kernels().isa; });
    return isa;
}

const char * kvmerge_last_error(void) {
    return last_error;
}

bool kvmerge_abort_callback(void * flag) {
    // Another thread writes it: a plain read could be taken out of llama.cpp's loop.
    return flag && *static_cast<const volatile int32_t *>(flag) != 0;
}

kvmerge_status kvmerge_log_create(bool echo, kvmerge_log ** out) {
    return guarded("kvmerge_log_create", [&] {
        require(out, "out is null");
        auto log = std::make_unique<kvmerge_log>();
        log->echo = echo;
        *out = logs().add(std::move(log));
    });
}

kvmerge_status kvmerge_log_free(kvmerge_log * log) {
    return guarded("kvmerge_log_free", [&] { logs().remove(log); });
}

void kvmerge_log_callback(int32_t level, const char * text, void * handle) {
    constexpr int32_t WARN = 3, CONTINUED = 5; // ggml_log_level
    constexpr size_t MOST = 4096;
    const Handles<kvmerge_log>::Use use(logs(), static_cast<kvmerge_log *>(handle), Access::SHARED);
    if (!text || use.status() != KVMERGE_OK) {
        return;
    }
    kvmerge_log & log = use.object();
    try {
        const std::lock_guard<std::mutex> lock(log.mutex);
        if (log.echo) {
            std::fputs(text, stderr);
        }
        if (level != CONTINUED) {
            log.keeping = level >= WARN;
        }
        if (log.keeping) {
            const size_t length = std::strlen(text);
            log.kept.append(text + length - std::min(length, MOST));
            if (log.kept.size() > MOST) {
                log.kept.erase(0, log.kept.size() - MOST);
            }
        }
    } catch (...) { // a log line is not worth a crash
    }
}

kvmerge_status kvmerge_log_take(kvmerge_log * log, char * text, size_t size) {
    return guarded("kvmerge_log_take", [&] {
        const Handles<kvmerge_log>::Use use(logs(), log, Access::SHARED);
        kvmerge_log & l = logs().entered(use);
        require(text && size > 0, "text is null or size is 0");
        const std::lock_guard<std::mutex> lock(l.mutex);
        const size_t n = std::min(size - 1, l.kept.size());
        std::memcpy(text, l.kept.data() + l.kept.size() - n, n);
        text[n] = '\0';
        l.kept.clear();
    });
}

} // extern "C"
