// Everything that servers and networks do wrong, one test per kind: the right bytes, or one clear
// error, within its time; and the table that documents it.

#include <curl/curl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "fault_run.h"

namespace librarian::weightmap::remote::testing {

// GoogleTest would print the bytes of it.
void PrintTo(const FaultKind& kind, std::ostream* out) { *out << kind.name; }

namespace {

constexpr unsigned kThreads = 8;  // Most runs wait for a server most of the time.
constexpr long kMemoryKib = 64L * 1024;
constexpr std::uint64_t kHeadRoomBytes = 64U << 10U;

// Resident memory at its highest; 0 where a sanitizer keeps freed memory.
long peak_memory_kib() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return 0;
#else
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
#endif
}

// What must hold whatever strikes; empty: it does.
std::string common_complaint(const FaultReport& report) {
  std::string text;
  const auto expect = [&](bool good, const std::string& what) { text += good ? "" : what + "; "; };
  expect(report.guards_intact, "wrote outside its destinations");
  expect(report.result != FaultResult::hang, "hangs");
  expect(report.statistics.body_bytes <=
             report.statistics.requests * (kFaultObjectBytes + kHeadRoomBytes),
         "reads on beyond the object's end");
  if (report.error) {
    const std::string& message = report.error->message();
    expect(message.find(kUrlSecret) == std::string::npos, "the URL's secret is in the message");
    expect(message.find("http") == 0, "the message does not say where");
    expect(message.find("; ") != std::string::npos || message.find(": use ") != std::string::npos,
           "the message does not say what to do");
    expect(message.find("emory") == std::string::npos, "the message blames this machine's memory");
  }
  return text;
}

// How far a report is from what the kind requires; empty: it is as required.
std::string complaint(const FaultKind& kind, const FaultReport& report) {
  std::string text = common_complaint(report);
  const auto expect = [&](bool good, const std::string& what) { text += good ? "" : what + "; "; };
  switch (kind.required) {
    case FaultOutcome::right_bytes:
      expect(report.result == FaultResult::right_bytes, "must recover");
      break;
    case FaultOutcome::clear_error:
      expect(report.result == FaultResult::error, "must end with an error");
      break;
    case FaultOutcome::undetectable:
      expect(report.result == FaultResult::wrong_bytes, "is seen after all: correct the catalogue");
      break;
  }
  if (report.error && kind.code) {
    expect(report.error->code() == *kind.code, std::string("must be ") +
                                                   error_code_name(*kind.code) + ", is " +
                                                   error_code_name(report.error->code()));
  }
  expect(report.sentence.find(kind.setup.says) != std::string::npos,
         "the message does not say: " + kind.setup.says);
  expect(report.took.count() >= kind.setup.waits_at_least_ms, "did not wait as it was told");
  expect(kind.times == 0 || report.struck > 0, "never struck");
  return text.empty() ? text
                      : kind.name + ": " + text + "it ended with " + result_name(report.result) +
                            " " + report.sentence;
}

class FaultTest : public ::testing::TestWithParam<FaultKind> {};

// Goal: zero wrong bytes where anything could tell, zero hangs, everything recoverable recovered.
TEST_P(FaultTest, EndsAsRequired) {
  const long memory_before = peak_memory_kib();
  const FaultReport report = play({{&GetParam()}});
  EXPECT_EQ(complaint(GetParam(), report), "");
  EXPECT_LE(peak_memory_kib() - memory_before, kMemoryKib);
}

INSTANTIATE_TEST_SUITE_P(Kinds, FaultTest, ::testing::ValuesIn(fault_kinds()),
                         [](const auto& kind) { return kind.param.name; });

// Calls work(0) ... work(count - 1), several at once.
void spread(std::size_t count, const std::function<void(std::size_t)>& work) {
  std::atomic<std::size_t> next = 0;
  std::vector<std::jthread> threads;
  for (unsigned i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (std::size_t index = next++; index < count; index = next++) {
        work(index);
      }
    });
  }
}

std::string result_cell(const FaultKind& kind, const FaultReport& report) {
  if (kind.required == FaultOutcome::undetectable && report.result == FaultResult::wrong_bytes) {
    return "undetectable: no reference";
  }
  return report.error ? std::string("error: ") + error_code_name(report.error->code())
                      : result_name(report.result);
}

std::string words_of() {
  const auto* curl = curl_version_info(CURLVERSION_NOW);
  return "Sentences in the words of libcurl " + std::to_string(curl->version_num >> 16U) + "." +
         std::to_string((curl->version_num >> 8U) & 0xFFU) + ".";
}

std::string table(const std::vector<FaultReport>& reports) {
  const std::vector<FaultKind>& kinds = fault_kinds();
  std::ostringstream text;
  text
      << "# What servers and networks do wrong, and what becomes of it\n\n"
      << "Written by `weightmap_remote_test` (FaultTable), which plays every row: eight ranges "
         "with holes of one object over four connections, and the fault strikes one of them where "
         "the row does not say more. `LIBRARIAN_WRITE_FAULT_TABLE=1` writes this file anew. The "
         "first 28 are those that other download tools were compared with.\n\n"
      << "`right bytes`: recovered. `undetectable: no reference`: nothing but a digest tells; "
         "such a read counts as `verified: stream`, never more. Where the origin states a digest "
         "(a "
         "hub's SHA-256, S3's checksums) and files are staged or hashed, these are caught as well: "
         "fetched anew if they struck once, else the end of the job (FaultDigestTest). What "
         "changes in "
         "our own memory after it came is always caught: a CRC32C is taken of every byte that "
         "libcurl "
         "hands over and compared when the bytes are used (the job ends with `corrupt` and the "
         "tensor's name, exit code 7; VirtualWeightMap.RefusesBytesThatChangedInMemory) or read "
         "back from the staging disk (fetched anew once; FileStaging). "
      << words_of() << "\n\n"
      << "| # | fault | what Librarian does | result | sentence |\n| --- | --- | --- | --- | --- "
         "|\n";
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    text << "| " << i + 1 << " | " << kinds[i].fault << " | " << kinds[i].defence << " | "
         << result_cell(kinds[i], reports[i]) << " | " << reports[i].sentence << " |\n";
  }
  return text.str();
}

// Goal: the documentation is what happens. Method: play everything, compare with the file.
TEST(FaultTable, IsTheCommittedOne) {
  const std::vector<FaultKind>& kinds = fault_kinds();
  std::vector<FaultReport> reports(kinds.size());
  const auto alone = [&](std::size_t i) { return kinds[i].setup.proxy != FaultProxy::none; };
  spread(kinds.size(), [&](std::size_t i) {
    if (!alone(i)) {
      reports[i] = play({{&kinds[i]}});
    }
  });
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    if (alone(i)) {
      reports[i] = play({{&kinds[i]}});
    }
  }
  const std::string played = table(reports);
  if (std::getenv("LIBRARIAN_WRITE_FAULT_TABLE") != nullptr) {
    std::ofstream(LIBRARIAN_FAULT_TABLE) << played;
  }
  std::ifstream file(LIBRARIAN_FAULT_TABLE);
  std::ostringstream committed;
  committed << file.rdbuf();
  ASSERT_GE(kinds.size(), 48U);
  if (!committed.str().empty() && committed.str().find(words_of()) == std::string::npos) {
    GTEST_SKIP() << "the table was written with another libcurl";
  }
  EXPECT_EQ(played, committed.str());
}

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

struct Pair {
  PlacedFault first;
  PlacedFault second;
  bool must_recover() const {
    const auto stays = [](const PlacedFault& fault) {
      return fault.kind->target == FaultTarget::part &&
             fault.kind->required == FaultOutcome::right_bytes;
    };
    return stays(first) && stays(second) && first.part != second.part;
  }
};

// Two faults of ranges that strike different requests: other parts, or later tries of one.
Pair pair_of(std::uint64_t seed) {
  static const std::vector<const FaultKind*> candidates = [] {
    std::vector<const FaultKind*> found;
    for (const FaultKind& kind : fault_kinds()) {
      if (plain_setup(kind) && kind.required != FaultOutcome::undetectable &&
          (kind.target == FaultTarget::part || kind.target == FaultTarget::last_part ||
           kind.target == FaultTarget::all_parts)) {
        found.push_back(&kind);
      }
    }
    return found;
  }();
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t limit) { return static_cast<int>(random() % limit); };
  Pair pair{{candidates[random() % candidates.size()], below(kFaultParts)},
            {candidates[random() % candidates.size()], below(kFaultParts)}};
  if (pair.first.part == pair.second.part) {
    pair.second.from_attempt = std::min(pair.first.kind->times, 2);
  }
  return pair;
}

// Goal: two faults at once still give the right bytes or a clear error.
// Method: seeded pairs, every other one with late requests sent twice; LIBRARIAN_FAULT_SEED and
// LIBRARIAN_FAULT_PAIRS play others, e.g. one again.
TEST(FaultPairs, GiveTheRightBytesOrAClearError) {
  const std::uint64_t seed = from_environment("LIBRARIAN_FAULT_SEED", 20260727);
  const std::uint64_t count = from_environment("LIBRARIAN_FAULT_PAIRS", 200);
  std::vector<std::string> complaints(count);
  std::atomic<int> recovered = 0;
  spread(count, [&](std::size_t i) {
    const Pair pair = pair_of(seed + i);
    FaultPlay how;
    how.hedged = (seed + i) % 2 == 1;
    const FaultReport report = play({pair.first, pair.second}, how);
    std::string& text = complaints[i];
    text = common_complaint(report);
    text += report.result == FaultResult::wrong_bytes ? "wrong bytes; " : "";
    text +=
        pair.must_recover() && report.result != FaultResult::right_bytes ? "must recover; " : "";
    recovered += report.result == FaultResult::right_bytes ? 1 : 0;
    if (!text.empty()) {
      text = "LIBRARIAN_FAULT_SEED=" + std::to_string(seed + i) + " (" + pair.first.kind->name +
             " on part " + std::to_string(pair.first.part) + ", " + pair.second.kind->name +
             " on part " + std::to_string(pair.second.part) + "): " + text + report.sentence;
    }
  });
  for (const std::string& text : complaints) {
    EXPECT_EQ(text, "");
  }
  RecordProperty("recovered", recovered);
}

}  // namespace
}  // namespace librarian::weightmap::remote::testing
