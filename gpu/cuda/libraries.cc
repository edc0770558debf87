#include "gpu/cuda/libraries.h"

namespace fastserve::gpu {
namespace {

/// What a library is called, the least version that is used, and what is done without it.
struct Wanted {
  const char* name;
  const char* file;
  const char* package;
  const char* without;
  int least_major, least_minor;
};

constexpr Wanted kCublasLt = {"cuBLASLt",
                              "libcublasLt.so.13",
                              "libcublas-13-0",
                              "matrix products run on FastServe's own kernels",
                              13,
                              0};
constexpr Wanted kCudnn = {
    "cuDNN", "libcudnn.so.9", "libcudnn9-cuda-13", "attention runs on FastServe's own kernels", 9,
    10};
constexpr Wanted kNccl = {"NCCL",     "libnccl.so.2",
                          "libnccl2", "several cards sum gradients along the step's tree alone",
                          2,          20};

struct Version {
  int major = 0, minor = 0, patch = 0;
};

std::string missing(const Wanted& wanted, const Error& why) {
  return why.what + "; " + wanted.without + ". Install " + wanted.package +
         " or name its folder in FASTSERVE_CUDA_LIBRARIES";
}

/// Opens the library, fills the table, asks the version.
template <class Table, class Fill, class Ask>
Opened<Table> open(const Wanted& wanted, const Fill& fill, const Ask& ask) {
  Opened<Table> opened;
  opened.found.name = wanted.name;
  const auto library = SharedLibrary::open(wanted.file);
  if (!library.ok()) {
    opened.found.problem = missing(wanted, library.error());
    return opened;
  }
  opened.found.path = library->path();
  auto* table = new Table;  // as long as the process, like the library
  if (const Status filled = fill(*library, *table); !filled.ok()) {
    opened.found.problem = missing(wanted, filled.error());
    delete table;
    return opened;
  }
  const Version v = ask(*table);
  opened.found.version = version_text(v.major, v.minor, v.patch);
  if (v.major == wanted.least_major && v.minor >= wanted.least_minor) {
    opened.table = table;
    return opened;
  }
  delete table;
  opened.found.problem = "is version " + opened.found.version + " and " +
                         std::to_string(wanted.least_major) + "." +
                         std::to_string(wanted.least_minor) + " is the least that is used; " +
                         wanted.without + ". Install a newer " + wanted.package;
  return opened;
}

}  // namespace

#define FS_FILL(name) FS_TRY(library.fill(table.name, #name));

const Opened<CublasLt>& cublaslt() {
  static const Opened<CublasLt> opened = open<CublasLt>(
      kCublasLt,
      [](const SharedLibrary& library, CublasLt& table) -> Status {
        FS_CUBLASLT_FUNCTIONS(FS_FILL)
        return {};
      },
      [](const CublasLt& table) {
        const auto v = static_cast<int>(table.cublasLtGetVersion());  // 130101
        return Version{v / 10000, v / 100 % 100, v % 100};
      });
  return opened;
}

const Opened<Cudnn>& cudnn() {
  static const Opened<Cudnn> opened = open<Cudnn>(
      kCudnn,
      [](const SharedLibrary& library, Cudnn& table) -> Status {
        FS_CUDNN_FUNCTIONS(FS_FILL)
        return {};
      },
      [](const Cudnn& table) {
        const auto v = static_cast<int>(table.cudnnGetVersion());  // 91900
        return Version{v / 10000, v / 100 % 100, v % 100};
      });
  return opened;
}

const Opened<Nccl>& nccl() {
  static const Opened<Nccl> opened = open<Nccl>(
      kNccl,
      [](const SharedLibrary& library, Nccl& table) -> Status {
        FS_NCCL_FUNCTIONS(FS_FILL)
        return {};
      },
      [](const Nccl& table) {
        int v = 0;
        table.ncclGetVersion(&v);  // 22809
        return Version{v / 10000, v / 100 % 100, v % 100};
      });
  return opened;
}

}  // namespace fastserve::gpu
