// Two EFI programs. The one is started in place of a kernel: it prints the variables by which systemd-boot says what it has
// started and what its menu holds, and fails. The other (-DDRIVER) stays in memory: where systemd-boot then waits, so that
// somebody can read its complaint, it ends systemd-boot. The file is the program as it lies on a disk, headers included:
//   gcc -c programs.S && objcopy -O binary -j .text programs.o kernel.efi
    .intel_syntax noprefix

    .set CON_OUT, 64
    .set OUTPUT_STRING, 8
    .set RUNTIME_SERVICES, 88
    .set GET_VARIABLE, 72
    .set BOOT_SERVICES, 96
    .set HANDLE_PROTOCOL, 152
    .set EXIT, 216
    .set STALL, 248
    .set PARENT, 8                          // of a loaded image

image:
    .ascii "MZ"
    .fill 58, 1, 0
    .long pe - image
pe:
    .ascii "PE\0\0"
    .short 0x8664, 1                        // x86-64, one section
    .long 0, 0, 0
    .short section - optional, 0x22         // executable, at any address
optional:
    .short 0x20b, 0                         // PE32+
    .long end - code, 0, 0, code - image, code - image
    .quad 0
    .long 4096, 4096, 0, 0, 0, 0            // in the file as in memory
    .long end - image, code - image, 0
#ifdef DRIVER
    .short 11, 0
#else
    .short 10, 0
#endif
    .quad 0, 0, 0, 0
    .long 0, 6
    .fill 6, 8, 0                           // no directories, no relocations
section:
    .ascii ".text\0\0\0"
    .long end - code, code - image, end - code, code - image, 0, 0, 0, 0xe0000020
    .p2align 12

code:                                       // rcx is the program's handle, rdx the system table
#ifdef DRIVER
    mov rcx, [rdx + BOOT_SERVICES]
    mov boot_services[rip], rcx
    lea rax, stall[rip]
    mov [rcx + STALL], rax
    xor eax, eax
    ret

boot_services:
    .quad 0
ended:                                      // the handle of what is to be ended
    .quad 0
stall:                                      // rcx is the time in microseconds
    cmp rcx, 1000000
    jb 1f
    mov rcx, ended[rip]
    mov rdx, 0x8000000000000015             // EFI_ABORTED
    xor r8d, r8d
    xor r9d, r9d
    mov rax, boot_services[rip]
    jmp [rax + EXIT]
1:  xor eax, eax
    ret
#else
    push rbx
    push rsi
    push rdi
    push r12
    sub rsp, 40
    mov rbx, rdx
    lea rdx, loaded_image[rip]
    lea r8, size[rip]
    mov rsi, [rbx + BOOT_SERVICES]
    call [rsi + HANDLE_PROTOCOL]
    mov rax, size[rip]
    mov rax, [rax + PARENT]
    mov rcx, [rsi + STALL]
    mov [rcx - 8], rax                      // ended
    lea rcx, selected[rip]
    call tell
    lea rcx, entries[rip]
    call tell
    add rsp, 40
    pop r12
    pop rdi
    pop rsi
    pop rbx
    mov rax, 0x8000000000000015             // EFI_ABORTED
    ret

tell:                                       // rcx names a variable; its strings are printed, a line each
    sub rsp, 56
    mov rdi, rcx
    mov qword ptr size[rip], end - buffer
    lea rdx, vendor[rip]
    xor r8d, r8d
    lea r9, size[rip]
    lea rsi, buffer[rip]
    mov [rsp + 32], rsi
    mov rax, [rbx + RUNTIME_SERVICES]
    call [rax + GET_VARIABLE]
    test rax, rax
    jnz 3f
    mov r12, rsi
    add r12, size[rip]
1:  cmp rsi, r12
    jae 3f
    mov rdx, rdi
    call print
    lea rdx, space[rip]
    call print
    mov rdx, rsi
    call print
    lea rdx, line[rip]
    call print
2:  add rsi, 2
    cmp word ptr [rsi - 2], 0
    jne 2b
    jmp 1b
3:  add rsp, 56
    ret

print:                                      // rdx is a string
    sub rsp, 40
    mov rcx, [rbx + CON_OUT]
    call [rcx + OUTPUT_STRING]
    add rsp, 40
    ret

loaded_image:                               // the protocol's name
    .long 0x5b1b31a1
    .short 0x9562, 0x11d2
    .byte 0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b
vendor:                                     // the Boot Loader Interface
    .long 0x4a67b082
    .short 0x0a4c, 0x41cf
    .byte 0xb6, 0xc7, 0x44, 0x0b, 0x29, 0xbb, 0x8c, 0x4f
selected:
    .string16 "LoaderEntrySelected"
entries:
    .string16 "LoaderEntries"
space:
    .string16 " "
line:
    .string16 "\r\n"
    .p2align 3
size:
    .quad 0
buffer:
    .fill 4096, 1, 0
#endif
    .p2align 12
end:
