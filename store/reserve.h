// A little space kept back, so that a store on a full disk can still be opened, and emptied.
#pragma once

#include "base/file.h"
#include "base/result.h"

namespace fastserve {

/// Gives root/reserve up when the disk is full. kResourceExhausted when even that leaves too little
/// for the catalogue, which writes when it is opened and does not survive that it cannot.
Status spend_reserve(const Path& root);

/// Claims root/reserve again where there is room. That there is none is no error.
void keep_reserve(const Path& root);

}  // namespace fastserve
