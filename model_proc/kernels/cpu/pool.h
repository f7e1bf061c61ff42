// A pool of threads for loops of some microseconds, on cores that other processes use too.
//
// OpenMP divides a loop evenly and spins at its end: a thread that the system has put aside then costs everybody its
// whole share, milliseconds where the loop takes microseconds. Here a loop is cut into small pieces that are taken one
// by one, so a thread that is put aside between pieces costs nothing, and whoever waits spins for a moment and then
// sleeps, which leaves its core to the thread that it waits for.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

class Pool {
public:
    explicit Pool(int num_threads) {
        for (int i = 1; i < num_threads; i++) helpers_.emplace_back([this] { help(); });
    }

    Pool(const Pool&) = delete;

    ~Pool() {
        stopping_ = true;
        wake();
        for (auto& helper : helpers_) helper.join();
    }

    int num_threads() const { return static_cast<int>(helpers_.size()) + 1; }

    // Calls work(i) for every i below count, on all threads, and returns when all calls have.
    template <class Work>
    void run(int64_t count, const Work& work) {
        if (count <= 1 || helpers_.empty()) {
            for (int64_t i = 0; i < count; i++) work(i);
            return;
        }
        for (int64_t start = 0; start < count; start += MAX_COUNT) {
            const int64_t size = count - start < MAX_COUNT ? count - start : MAX_COUNT;
            const auto piece = [&](int64_t i) { work(start + i); };
            using Piece = decltype(piece);
            publish(size, [](const void* context, int64_t i) { (*static_cast<Piece*>(context))(i); }, &piece);
        }
    }

private:
    using Call = void (*)(const void* context, int64_t index);

    // One word says which loop it is, how many pieces it has and how many are taken: a thread that comes late cannot
    // take a piece of a loop that has ended, and a loop does not end before every piece that was taken is done.
    static constexpr int COUNT_BITS = 20;
    static constexpr int64_t MAX_COUNT = (1 << COUNT_BITS) - 1;

    void publish(int64_t count, Call call, const void* context) {
        call_ = call;
        context_ = context;
        remaining_.store(static_cast<int32_t>(count), std::memory_order_relaxed);
        const uint64_t loop = ++loops_ << (2 * COUNT_BITS);
        state_.store(loop | static_cast<uint64_t>(count) << COUNT_BITS);
        if (sleepers_.load() > 0) wake();
        while (take_piece()) {
        }
        spin(CALLER_SPIN, [this] { return remaining_.load(std::memory_order_acquire) == 0; });
        for (int32_t left; (left = remaining_.load(std::memory_order_acquire)) != 0;) remaining_.wait(left);
    }

    bool take_piece() {
        uint64_t state = state_.load(std::memory_order_acquire);
        do {
            if ((state & MAX_COUNT) >= (state >> COUNT_BITS & MAX_COUNT)) return false;
        } while (!state_.compare_exchange_weak(state, state + 1));
        call_(context_, static_cast<int64_t>(state & MAX_COUNT));
        if (remaining_.fetch_sub(1) == 1) remaining_.notify_one();
        return true;
    }

    bool has_piece() const {
        const uint64_t state = state_.load();
        return (state & MAX_COUNT) < (state >> COUNT_BITS & MAX_COUNT);
    }

    void help() {
        while (!stopping_) {
            if (take_piece() || spin(HELPER_SPIN, [this] { return has_piece(); })) continue;
            const uint32_t wakes = wakes_.load();
            sleepers_++;
            if (!has_piece() && !stopping_) wakes_.wait(wakes);
            sleepers_--;
        }
    }

    void wake() {
        wakes_++;
        wakes_.notify_all();
    }

    // Waits a while for done(), without giving the core away. Returns whether it happened.
    template <class Done>
    static bool spin(std::chrono::microseconds time, const Done& done) {
        const auto end = std::chrono::steady_clock::now() + time;
        do {
            for (int i = 0; i < 32; i++) {
                if (done()) return true;
                _mm_pause();
            }
        } while (std::chrono::steady_clock::now() < end);
        return false;
    }

    static constexpr std::chrono::microseconds CALLER_SPIN{30}, HELPER_SPIN{60};

    alignas(64) std::atomic<uint64_t> state_{0};
    alignas(64) std::atomic<int32_t> remaining_{0};
    alignas(64) std::atomic<int32_t> sleepers_{0};
    std::atomic<uint32_t> wakes_{0};
    std::atomic<bool> stopping_{false};
    alignas(64) uint64_t loops_ = 0;
    Call call_ = nullptr;
    const void* context_ = nullptr;
    std::vector<std::thread> helpers_;
};
