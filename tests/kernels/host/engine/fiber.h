// SPDX-License-Identifier: Apache-2.0
// A context of its own stack, and switching between two: what the System V ABI of x86-64 says a call
// keeps, and ucontext, about three times slower, elsewhere.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
extern "C" void msl_host_switch(void** save, void* load);
asm(".text\n.globl msl_host_switch\n.type msl_host_switch,@function\nmsl_host_switch:\n"
    " pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    " movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
    " popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n"
    ".size msl_host_switch,.-msl_host_switch\n");

struct Context {
  void* stack_pointer;
  void prepare(char* stack, size_t bytes, void (*start)()) {
    void** top = (void**)(((uintptr_t)(stack + bytes)) & ~(uintptr_t)15);
    *--top = nullptr;  // keeps the stack aligned as after a call
    *--top = (void*)start;
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    stack_pointer = top;
  }
  void switch_to(Context& other) { msl_host_switch(&stack_pointer, other.stack_pointer); }
};
#else
#include <ucontext.h>
struct Context {
  ucontext_t context;
  void prepare(char* stack, size_t bytes, void (*start)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, start, 0);
  }
  void switch_to(Context& other) { swapcontext(&context, &other.context); }
};
#endif
