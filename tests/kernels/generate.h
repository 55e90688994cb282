#ifndef GENERATE_H
#define GENERATE_H

#include "case.h"

void generate(test_case *t, uint64_t seed);
void release(test_case *t);
void random_bytes(uint64_t seed, uint8_t *p, size_t count);

#endif
